"""How good a model's answers are: losses, text metrics, preferences; during training, and of a finished run.

losses.py    mean loss and perplexity of the supervised tokens
words.py     a text's words, Chinese segmented
metrics.py   exact match, ROUGE, BLEU
answers.py   held-out conversations as prompts and references, and a model's answers to them
pairs.py     preferences: which of two answers a model finds better
held_out.py  answers as a metric during training
subjects.py  what `luthier evaluate` evaluates: a run, a checkpoint, a model
rows.py      the rows it is evaluated on, each with the place that it is from
measure.py   the evaluation itself, of one model or of two against each other
"""
