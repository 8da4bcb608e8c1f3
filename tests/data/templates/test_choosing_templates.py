"""Which template `data.template` means, and what putting it on a tokenizer warns of."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import platformdirs
import pytest
import yaml

from luthier.api import load_config
from luthier.core.data.templates import apply_template, choose_template, end_of_turn, named_templates
from luthier.core.errors import DataError

BROKEN = "{% for message in messages %}\n{{ message.content }}\n{% endfr %}\n"
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}


@pytest.fixture
def base(tiny_tokenizer: Any) -> Any:
    """A base model's tokenizer: no chat template; ChatML's tokens are in its vocabulary."""
    tiny_tokenizer.chat_template = None
    tiny_tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tiny_tokenizer


def test_auto_is_the_models_own_and_leaves_it_alone(tiny_tokenizer: Any) -> None:
    before = tiny_tokenizer.chat_template
    template = choose_template(tiny_tokenizer, "auto")
    assert template.text == before
    assert apply_template(tiny_tokenizer, template) == ()
    assert tiny_tokenizer.chat_template == before


def test_auto_without_one_is_refused_with_the_list_to_choose_from(base: Any) -> None:
    with pytest.raises(DataError, match="has no chat template") as caught:
        choose_template(base, "auto")
    ready, plain, lacking, _ = caught.value.fix.split("; ")
    assert ready == (
        "choose one with data.template: chatml, internlm2, qwen2.5, qwen3, qwen3-instruct, smollm2 use tokens that this "
        "vocabulary has"
    )
    assert plain.endswith("need no tokens of their own")
    assert {"alpaca", "llama2", "vicuna", "zephyr"} <= set(plain.removesuffix(" need no tokens of their own").split(", "))
    assert {"llama3", "gemma", "phi4"} <= set(lacking.removesuffix(" need tokens that this vocabulary lacks").split(", "))


def test_of_several_own_templates_the_one_that_is_taken_is_said(tiny_tokenizer: Any) -> None:
    tiny_tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools }}"}
    template = choose_template(tiny_tokenizer, "auto")
    assert template.summary == "the model's own: of default, tool_use it is default, and tool_use for rows with tools"
    apply_template(tiny_tokenizer, template)
    assert set(tiny_tokenizer.chat_template) == {"default", "tool_use"}
    tiny_tokenizer.chat_template = {"rag": "x", "tool_use": "y"}
    with pytest.raises(DataError, match=r"several chat templates \(rag, tool_use\)"):
        choose_template(tiny_tokenizer, "auto")


def test_a_name_replaces_the_models_own(base: Any) -> None:
    base.eos_token = "<|im_end|>"
    assert apply_template(base, choose_template(base, "chatml")) == ()
    text = base.apply_chat_template([USER, ANSWER], tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>\n"


def test_an_unknown_name_tells_the_nearest_and_all(base: Any) -> None:
    with pytest.raises(DataError, match="no chat template 'qwen-3'") as caught:
        choose_template(base, "qwen-3")
    assert "did you mean qwen3" in caught.value.fix
    assert all(name in caught.value.fix for name in named_templates())


def test_a_file_is_seen_from_the_current_folder_then_from_the_base(
    base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
        (folder / "my.jinja").write_text(f"{folder.name} {{{{ messages[0].content }}}}")
    monkeypatch.chdir(here)
    assert choose_template(base, "my.jinja", there).text.startswith("here")
    (here / "my.jinja").unlink()
    template = choose_template(base, "my.jinja", there)
    apply_template(base, template)
    assert base.apply_chat_template([USER], tokenize=False) == "there Hi"
    with pytest.raises(DataError, match="cannot be read: No such file"):
        choose_template(base, "my.jinja")


def test_the_configuration_makes_the_path_absolute(tmp_path: Path) -> None:
    (tmp_path / "my.jinja").write_text("{{ messages }}")
    config = {"model": "m", "data": {"train": [{"inline": [{"text": "a"}]}], "template": "my.jinja"}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    assert load_config(tmp_path / "run.yaml").data.template == str(tmp_path / "my.jinja")
    assert load_config(config | {"data": config["data"] | {"template": "chatml"}}).data.template == "chatml"  # type: ignore[operator]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BROKEN.encode(), r"my\.jinja:3: the chat template is no Jinja: .*endfr"),
        (b"\xff\xfe", "it is not UTF-8"),
        (b"x" * (1 << 20) + b"x", "1,048,577 bytes: too large"),
    ],
)
def test_a_file_that_is_no_template(base: Any, tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "my.jinja"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        choose_template(base, str(path))


def test_a_template_runs_in_the_sandbox(base: Any, tmp_path: Path) -> None:
    path = tmp_path / "my.jinja"
    path.write_text("{{ messages.__class__.__mro__ }}")
    apply_template(base, choose_template(base, str(path)))
    with pytest.raises(Exception, match=r"unsafe|__class__"):
        base.apply_chat_template([USER], tokenize=False)


def test_tokens_that_the_vocabulary_lacks_are_named_with_what_to_write(base: Any) -> None:
    warnings = apply_template(base, choose_template(base, "phi4"))
    (written,) = [text for text in warnings if "lacks" in text]
    assert "writes <|im_sep|>, which the vocabulary lacks" in written
    patch = written.split("`")[1]
    assert yaml.safe_load(patch) == {"patches": [{"use": "new_tokens", "tokens": ["<|im_sep|>"], "special": True}]}


def test_an_end_of_turn_that_is_no_end_token_is_told(base: Any) -> None:
    (warning,) = apply_template(base, choose_template(base, "chatml"))
    assert warning.startswith("answers end with <|im_end|>, and the tokenizer's end token is <eos>")


def test_a_template_that_never_ends_an_answer_is_told(base: Any, tmp_path: Path) -> None:
    path = tmp_path / "my.jinja"
    path.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    (warning,) = apply_template(base, choose_template(base, str(path)))
    assert "generation will not stop" in warning
    base.eos_token = None
    with pytest.raises(DataError, match="the tokenizer's end token, and it has none"):
        apply_template(base, choose_template(base, "tulu"))


def test_a_template_with_bos_on_a_tokenizer_without(base: Any) -> None:
    base.bos_token = None
    assert any("bos token, and it has none" in text for text in apply_template(base, choose_template(base, "vicuna")))


def test_the_end_of_turn_is_the_first_special_token_after_the_answer(base: Any) -> None:
    base.chat_template = "{{ messages[-1].content }}<|im_end|>\n<eos>"
    assert end_of_turn(base) == "<|im_end|>"
    base.chat_template = "{{ raise_exception('no') }}"
    assert end_of_turn(base) is None


def test_smollm2s_own_template_is_the_named_one(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = Path(platformdirs.user_cache_dir("luthier")) / "models" / "smollm2-135m"  # the tests' own cache is empty
    if not (folder / "tokenizer.json").is_file():
        pytest.skip("SmolLM2 is not in the cache")
    tokenizer = AutoTokenizer.from_pretrained(
        shutil.copytree(folder, tmp_path / "m", ignore=lambda *_: ["model.safetensors"])
    )
    own, named, chatml = (choose_template(tokenizer, name).text for name in ("auto", "smollm2", "chatml"))
    system = {"role": "system", "content": "Be brief.\n"}
    for messages in ([USER], [USER, ANSWER], [system, USER, ANSWER, USER], [system, USER, ANSWER, USER, ANSWER]):
        for prompt in (False, True):
            texts = [
                tokenizer.apply_chat_template(messages, chat_template=text, tokenize=False, add_generation_prompt=prompt)
                for text in (own, named, chatml)
            ]
            assert texts[0] == texts[1]
            assert (texts[0] == texts[2]) == (messages[0] is system)
    assert apply_template(tokenizer, choose_template(tokenizer, "smollm2")) == ()


def test_explain_tells_of_a_template_and_lists_all() -> None:
    from luthier.cli.explain import explain
    from luthier.registry.catalog import discover

    catalog = discover(strict=False, disabled=())
    (entry,) = explain("gemma", catalog)
    assert (entry.kind, entry.facts["ends a turn"], entry.facts["system"]) == ("chat template", "<end_of_turn>", "none")
    assert yaml.safe_load(entry.example) == {"data": {"template": "gemma"}}
    assert set(explain("templates", catalog)[0].facts) == set(named_templates())


def test_a_file_outside_the_allowed_folders(base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret, allowed = tmp_path / "secret.txt", tmp_path / "allowed"
    secret.write_text("a password")
    allowed.mkdir()
    (allowed / "own.jinja").write_text("{{ messages[0].content }}")
    (allowed / "link.jinja").symlink_to(secret)
    monkeypatch.setenv("LUTHIER_DATA_FOLDERS", str(allowed))
    assert choose_template(base, str(allowed / "own.jinja")).text == "{{ messages[0].content }}"
    for path in (secret, allowed / "link.jinja", allowed / ".." / "secret.txt"):
        with pytest.raises(DataError, match="is outside the folders that LUTHIER_DATA_FOLDERS allows"):
            choose_template(base, str(path))
