"""Ask the model that `luthier train examples/quickstart.yaml` made, without its adapter and with it."""

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.registry.models import resolve_model

folder = "runs/quickstart"
tokenizer = AutoTokenizer.from_pretrained(folder)
base = AutoModelForCausalLM.from_pretrained(resolve_model("smollm2-135m").path)
model = PeftModel.from_pretrained(base, folder)


def answer(question):
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    tokens = model.generate(**prompt, max_new_tokens=40, do_sample=False)
    return tokenizer.decode(tokens[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True)


for question in ("Which city is the capital of Japan?", "What is the capital of Belgium?"):
    with model.disable_adapter():
        print("before ", answer(question))
    print("after  ", answer(question))
