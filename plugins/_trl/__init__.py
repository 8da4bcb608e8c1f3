"""What the stages share whose loss is TRL's: TRL's trainer computes it, everything else is as in the other stages.

trainer.py     TrlMixin: before a trainer class of TRL, so that it trains our model on our batches
batches.py     rows of two sequences (or one) as TRL's losses want them
scoring.py     the log-probabilities of the answers, in place of TRL's fused head
arguments.py   TRL's configuration objects with everything off that writes, prints or decides
"""
