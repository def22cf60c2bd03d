"""Textual inversion: tokens in prompts, a side-car beside the base, files that readers load."""

from __future__ import annotations

import json

import pytest
import tiny
import torch
from diffusers import StableDiffusionPipeline
from probes import perturb
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

from modules import models
from modules.config import load
from modules.errors import ConfigError
from modules.models.fingerprint import hash_tokenizer
from modules.models.text_encoder import TextEncoder
from modules.trainer import Trainer
from networks.embedding_files import read_embedding
from networks.textual_inversion import TextualInversion, Token, shares

TOY = {"<cat-toy>": Token(init="cat", vectors=2), "<hat>": Token(init="red")}
SAMPLE = {"prompts": ["a <toy>"], "width": 32, "height": 32, "num_inference_steps": 2}
PATH = "networks.textual_inversion.TextualInversion"


def attached(tokens=TOY, model=None):
    model = model or tiny.make_sd()
    network = TextualInversion(tokens=tokens)
    network.attach(model)
    return model, network


def encode(model, *captions: str) -> torch.Tensor:
    with torch.no_grad():
        return model.encode_text(captions)["encoder_hidden_states"]


def snapshot(module) -> dict[str, torch.Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def enlarged(model, rows: torch.Tensor) -> CLIPTextModel:
    """A text encoder whose own matrix ends in `rows`."""
    encoder = model.text_encoders[0].module
    size = encoder.config.vocab_size + len(rows)
    larger = CLIPTextModel(CLIPTextConfig(**{**encoder.config.to_dict(), "vocab_size": size}))
    state = snapshot(encoder)
    key = next(key for key in state if key.endswith("token_embedding.weight"))
    state[key] = torch.cat([state[key], rows.detach()])
    larger.load_state_dict(state)
    return larger.eval()


# -- tokens in prompts --------------------------------------------------------------------------


def test_a_token_becomes_ids_beyond_the_vocabulary():
    model, _ = attached()
    encoder = model.text_encoders[0]
    plain = encoder.token_ids("a photo of on the mat")
    size = len(encoder.tokenizer)
    (ids,) = encoder.tokenize(["a photo of <cat-toy> on <hat> the mat"]).tolist()
    new = [size, size + 1], [size + 2]
    assert ids[1:10] == [*plain[:3], *new[0], plain[3], *new[1], *plain[4:]]
    assert len(ids) == 16


def test_tokenizer_and_state_dict_stay_as_they_were():
    model = tiny.make_sd()
    encoder = model.text_encoders[0]
    hashed, before = hash_tokenizer(encoder.tokenizer), snapshot(encoder.module)
    caption = "a <cat-toy> on the <hat>"
    spelled, states = encoder.tokenize([caption]), encode(model, caption)
    _, network = attached(model=model)
    assert len(encoder.tokenizer) == encoder.module.config.vocab_size
    assert hash_tokenizer(encoder.tokenizer) == hashed
    assert list(encoder.module.state_dict()) == list(before)
    assert not torch.equal(encode(model, caption), states)
    network.detach()
    assert torch.equal(encoder.tokenize([caption]), spelled)
    assert torch.equal(encode(model, caption), states)
    network.attach(model)  # with what it has learnt
    assert not torch.equal(encode(model, caption), states)


def test_other_prompts_are_encoded_as_before():
    model = tiny.make_sd()
    before = encode(model, "a red cat", "")
    attached(model=model)
    assert torch.equal(encode(model, "a red cat", ""), before)


def test_it_computes_and_learns_as_rows_of_the_matrix_would():
    model, network = attached()
    perturb(network)
    captions = ["a photo of <cat-toy>", "the <hat> on <cat-toy><hat>", "a cat"]
    ids = model.text_encoders[0].tokenize(captions)
    (rows,) = network.embeddings
    found = model.encode_text(captions)["encoder_hidden_states"]
    larger = enlarged(model, rows)
    expected = larger(ids).last_hidden_state
    assert torch.allclose(found, expected, atol=1e-6)
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    (found * pull).sum().backward()
    (expected * pull).sum().backward()
    gradient = larger.get_input_embeddings().weight.grad[-len(rows) :]
    assert gradient.any(dim=1).all()
    assert torch.allclose(rows.grad, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("caption", ["<Cat-Toy>", "a<cat-toy>s", "(<cat-toy>, red)"])
def test_case_and_neighbours_of_a_bracketed_token_do_not_matter(caption):
    model, _ = attached()
    encoder = model.text_encoders[0]
    assert set(encoder.ids_of("<cat-toy>")) <= set(encoder.tokenize([caption])[0].tolist())


def test_a_token_of_letters_is_not_found_within_a_word():
    model, _ = attached({"catx": "cat"})
    encoder = model.text_encoders[0]
    (new,) = encoder.ids_of("catx")
    counts = [
        encoder.tokenize([caption])[0].tolist().count(new)
        for caption in ("a catx, CatX.", "concatx catxs")
    ]
    assert counts == [2, 0]


def test_the_longer_of_two_tokens_wins():
    model, _ = attached({"<a>": "cat", "<a>b": "dog"})
    encoder = model.text_encoders[0]
    ids = encoder.tokenize(["<a>b <a>"])[0].tolist()
    assert ids[1:3] == [*encoder.ids_of("<a>b"), *encoder.ids_of("<a>")]


def test_the_end_of_a_prompt_is_found_as_before():
    model = tiny.make_sd()
    module = model.text_encoders[0].module
    core = getattr(module, "text_model", module)
    core.eos_token_id = 2  # an old config: the end is where the greatest id stands
    attached(model=model)
    ids = model.text_encoders[0].tokenize(["a <hat>"])
    with torch.no_grad():
        for output in (module(ids), module(input_ids=ids)):
            assert torch.equal(output.pooler_output[0], output.last_hidden_state[0, 3])


def test_a_long_prompt_is_cut():
    model, _ = attached()
    ids = model.text_encoders[0].tokenize(["<cat-toy> " * 20])
    assert ids.shape == (1, 16)
    assert ids[0, -1] == model.text_encoders[0].tokenizer.eos_token_id
    assert encode(model, "<cat-toy> " * 20).isfinite().all()


# -- how it begins ------------------------------------------------------------------------------


def test_shares_are_runs():
    assert shares([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4, 5]]
    assert shares([1, 2], 5) == [[1], [1], [1], [2], [2]]
    assert shares([1, 2, 3], 3) == [[1], [2], [3]]
    assert shares([7], 2) == [[7], [7]]


def test_vectors_begin_as_words_or_their_means():
    tokens = {
        "<sequence>": Token(init="red cat"),
        "<mean>": Token(init="red cat", vectors=1),
        "<repeated>": Token(init="red cat", vectors=3),
        "<short>": "dog",
    }
    model, network = attached(tokens)
    encoder = model.text_encoders[0]
    matrix = encoder.module.get_input_embeddings().weight
    red, cat, dog = (matrix[encoder.token_ids(word)[0]] for word in ("red", "cat", "dog"))
    expected = torch.stack([red, cat, (red + cat) / 2, red, red, cat, dog])
    assert torch.equal(network.embeddings[0], expected)


def test_begun_as_a_word_it_reads_as_the_word():
    model, _ = attached()
    assert torch.equal(encode(model, "a <hat> mat"), encode(model, "a red mat"))


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ({}, "tokens: is empty"),
        ({"<a b>": "cat"}, "'<a b>' has spaces or commas"),
        ({"<a,b>": "cat"}, "has spaces or commas"),
        ({"<*>": "cat"}, "no letter that could name its file"),
        ({"<a>": "cat", "<A>!": "dog"}, "'<a>' and '<A>!' would be written to one file"),
        ({"<a>": ""}, r"tokens\.<a>\.init: is empty"),
        ({"<a>": Token(init="cat", vectors=0)}, r"tokens\.<a>\.vectors: 0 is less than 1"),
    ],
)
def test_impossible_tokens_are_refused(tokens, message):
    with pytest.raises(ValueError, match=message):
        TextualInversion(tokens=tokens)


def test_a_token_that_is_there_already_is_refused():
    with pytest.raises(ValueError, match="'Cat' is a token of the text encoder already; choose"):
        attached({"Cat": "dog"})
    model, _ = attached()
    with pytest.raises(ValueError, match="'<HAT>' is a token of another network already"):
        attached({"<HAT>": "dog"}, model)


def test_two_networks_have_tokens_of_their_own():
    model, first = attached({"<a>": Token(init="cat", vectors=3)})
    _, second = attached({"<b>": "dog"}, model)
    perturb(first)
    perturb(second, scale=0.7)
    alone = encode(model, "the <b>")
    both = encode(model, "<a> <b>")
    first.detach()
    assert torch.allclose(encode(model, "the <b>"), alone, atol=1e-6)
    first.attach(model)
    assert torch.allclose(encode(model, "<a> <b>"), both, atol=1e-6)


# -- files --------------------------------------------------------------------------------------


def test_files_are_embeddings_by_their_names(tmp_path):
    model, network = attached()
    perturb(network)
    network.save(tmp_path / "a", dtype=torch.float32, metadata=network.describe(model))
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["cat-toy.safetensors", "hat.safetensors"]
    toy = load_file(tmp_path / "a" / "cat-toy.safetensors")
    assert list(toy) == ["emb_params"]  # one key, as AUTOMATIC1111 and ComfyUI want
    assert torch.equal(toy["emb_params"], network.embeddings[0][:2])
    hat = load_file(tmp_path / "a" / "hat.safetensors")
    assert torch.equal(hat["emb_params"], network.embeddings[0][2:])


def test_diffusers_encodes_the_same_from_our_files(tmp_path, model_directory):
    model, network = attached(model=models.load(str(model_directory)))
    perturb(network)
    network.save(tmp_path, dtype=torch.float32, metadata={})
    pipeline = StableDiffusionPipeline.from_pretrained(
        model_directory, local_files_only=True, dtype=torch.float32
    )
    for name, token in (("cat-toy", "<cat-toy>"), ("hat", "<hat>")):
        pipeline.load_textual_inversion(tmp_path / f"{name}.safetensors", token=token)
    for prompt in ("a photo of <cat-toy>", "the <hat> on a red <cat-toy>", "a dog"):
        theirs = pipeline.encode_prompt(prompt, torch.device("cpu"), 1, False)[0]
        assert torch.allclose(encode(model, prompt), theirs, atol=1e-6)


def test_a_directory_is_read_back_with_its_vectors(tmp_path, caplog):
    model, network = attached()
    perturb(network)
    network.save(tmp_path / "a", dtype=torch.float32, metadata={})
    caption = "a <cat-toy> <hat>"
    other_model, other = attached({"<hat>": "dog", "<cat-toy>": "cat"})
    other.load(tmp_path / "a")
    assert torch.equal(encode(other_model, caption), encode(model, caption))
    assert "cat-toy.safetensors: has 2 vectors, which are taken" in caplog.text
    assert len(other.embeddings[0]) == 3
    other.detach()
    assert not other_model.text_encoders[0].added_tokens


def test_a_file_of_automatic1111_is_read(tmp_path):
    vectors = torch.randn(3, 32)
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "x"}
    torch.save({**content, "step": 5, "sd_checkpoint": None}, tmp_path / "hat.pt")
    _, network = attached({"<hat>": "red"})
    network.load(tmp_path / "hat.pt")
    assert torch.equal(network.embeddings[0], vectors)
    _, network = attached({"<hat>": "red"})
    network.load(tmp_path)  # found by its name
    assert torch.equal(network.embeddings[0], vectors)


def test_wrong_files_are_refused(tmp_path):
    _, network = attached()
    with pytest.raises(ValueError, match="is one file for 2 tokens"):
        network.load(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"has no cat-toy\.safetensors or cat-toy\.pt"):
        network.load(tmp_path)
    torch.save({"emb_params": torch.zeros(1, 768)}, tmp_path / "wide.pt")
    with pytest.raises(ValueError, match=r"\(1, 768\).*\(1, 32\); it is for another kind"):
        attached({"<a>": "cat"})[1].load(tmp_path / "wide.pt")
    torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.pt")
    with pytest.raises(ValueError, match="is no embedding for 1 text encoder"):
        attached({"<a>": "cat"})[1].load(tmp_path / "two.pt")


def test_two_text_encoders_share_a_file(tmp_path):
    model = tiny.make_sd()
    config = CLIPTextConfig(**{**model.text_encoders[0].module.config.to_dict(), "hidden_size": 48})
    second = CLIPTextModel(config).eval()
    model.text_encoders.append(TextEncoder(second, tiny.make_tokenizer()))
    _, network = attached({"<a>": Token(init="red cat")}, model)
    groups = {key: [p.shape for p in group] for key, group in network.parameter_groups().items()}
    assert groups == {"text_encoders.0": [(2, 32)], "text_encoders.1": [(2, 48)]}
    perturb(network)
    network.save(tmp_path, dtype=torch.float32, metadata={})
    shapes = {
        key: tuple(value.shape) for key, value in load_file(tmp_path / "a.safetensors").items()
    }
    assert shapes == {"clip_l": (2, 32), "clip_g": (2, 48)}  # as SDXL's readers want
    found = read_embedding(tmp_path / "a.safetensors", [32, 48])
    assert all(torch.equal(a, b) for a, b in zip(found, network.embeddings, strict=True))
    before = snapshot(network)
    perturb(network, scale=1.0)
    network.load(tmp_path / "a.safetensors")
    assert all(torch.equal(value, before[key]) for key, value in snapshot(network).items())


# -- in a run -----------------------------------------------------------------------------------


def assemble(path, *overrides: str) -> Trainer:
    trainer = Trainer.from_config(load(path, *overrides))
    assert trainer is not None
    return trainer


@pytest.fixture
def write(write_config, dataset_directory):
    """Write a config with the token `<toy>` in every caption."""

    def call(name: str = "run", *, dataset=None, networks=None, **sections):
        toy = {"module": PATH, "args": {"tokens": {"<toy>": {"init": "cat", "vectors": 2}}}}
        args = {"path": str(dataset_directory), "prefix": "<toy>, ", **(dataset or {})}
        networks = {"toy": toy, **(networks or {})}
        return write_config(name, dataset={"args": args}, networks=networks, **sections)

    return call


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_only_its_own_rows_are_trained(write, precision, checkpointing):
    section = {"mixed_precision": precision, "gradient_checkpointing": checkpointing}
    trainer = assemble(write(train=section, sample={**SAMPLE, "every_steps": 1}))
    names = [group["name"] for group in trainer.optimizer.param_groups]
    assert names == ["toy.text_encoders.0"]
    network = trainer.networks["toy"]
    base = {name: snapshot(part) for name, part in trainer.model.components().items()}
    before = snapshot(network)
    trainer.train()
    for name, part in trainer.model.components().items():
        assert all(torch.equal(value, base[name][key]) for key, value in snapshot(part).items())
    (key,) = before
    assert (snapshot(network)[key] != before[key]).any(dim=1).all()  # both vectors
    saved = sorted(path.name for path in (trainer.directory / "run").iterdir())
    assert saved == ["toy.safetensors"]
    assert (trainer.directory / "before_after.png").is_file()


def test_checkpointing_changes_no_gradient(write):
    gradients = []
    for checkpointing in (False, True):
        path = write(train={"gradient_checkpointing": checkpointing})
        trainer = assemble(path, "train.max_train_steps=1", "optimizer.module=torch.optim.SGD")
        before = trainer.networks["toy"].embeddings[0].detach().clone()
        trainer.train()
        gradients.append(trainer.networks["toy"].embeddings[0].detach() - before)
    assert gradients[0].any()
    assert torch.allclose(*gradients, rtol=1e-4, atol=1e-9)


def test_a_run_goes_on_from_its_files(write):
    first = assemble(write("first"))
    first.train()
    network = {"module": PATH, "args": {"tokens": {"<toy>": "dog"}}}
    resume = str(first.directory / "first")
    second = assemble(write(networks={"toy": {**network, "resume": resume}}))
    learned = first.networks["toy"].embeddings[0]
    assert torch.equal(second.networks["toy"].embeddings[0], learned)
    assert any(second.networks["toy"].embeddings[0] is p for p in second.groups[0].parameters)


def test_captions_without_the_token_give_no_gradient(write, caplog):
    trainer = assemble(write(dataset={"prefix": ""}, optimizer={"module": "torch.optim.SGD"}))
    assert "no caption of the dataset has <toy>, which will learn nothing" in caplog.text
    before = snapshot(trainer.networks["toy"])
    trainer.train()
    assert all(torch.equal(v, before[k]) for k, v in snapshot(trainer.networks["toy"]).items())


def test_class_images_need_no_token(write, tmp_path, caplog):
    prior = tiny.save_dataset(tmp_path / "class", captions=["a cat"])
    trainer = assemble(write(prior={"args": {"path": str(prior)}}))
    assert "which will learn nothing" not in caplog.text
    before = snapshot(trainer.networks["toy"])
    trainer.train()
    assert any(not torch.equal(v, before[k]) for k, v in snapshot(trainer.networks["toy"]).items())


def test_pivotal_tuning_with_a_lora_of_unet_and_text_encoder(write, tmp_path):
    lora = {
        "module": "networks.lora.LoRA",
        "args": {"rank": 2, "targets": ["unet", "text_encoders"]},
        "learning_rate": {"unet": 1e-3, "text_encoders": 5e-4},
    }
    trainer = assemble(write(networks={"lora": lora}, sample=SAMPLE))
    rates = {group["name"]: group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {
        "toy.text_encoders.0": 1e-3,
        "lora.unet": 1e-3,
        "lora.text_encoders.0": 5e-4,
    }
    base = snapshot(trainer.model.text_encoders[0].module)
    before = {name: snapshot(network) for name, network in trainer.networks.items()}
    trainer.train()
    for name, network in trainer.networks.items():
        after = snapshot(network)
        assert any(not torch.equal(after[key], before[name][key]) for key in after), name
    after = snapshot(trainer.model.text_encoders[0].module)
    assert all(torch.equal(after[key], base[key]) for key in base)
    assert (trainer.directory / "run-toy" / "toy.safetensors").is_file()
    assert (trainer.directory / "run-lora.safetensors").is_file()


def test_a_fine_tuned_model_beside_it_is_saved_without_the_tokens(write, model_directory):
    trainer = assemble(write(), "model.trainable=[unet.up_blocks]")
    trainer.train()
    saved = trainer.directory / "run"
    for file in ("text_encoder/config.json", "tokenizer/vocab.json", "tokenizer/tokenizer.json"):
        texts = [(folder / file).read_text(encoding="utf-8") for folder in (saved, model_directory)]
        contents = [json.loads(text) for text in texts]
        for content in contents:  # those say the file's precision
            for key in ("dtype", "torch_dtype"):
                content.pop(key, None)
        assert contents[0] == contents[1], file
    model = models.load(str(saved))  # which compares tokenizer and text encoder
    assert "<toy>" not in model.text_encoders[0].tokenizer.get_vocab()
    weights = [
        load_file(directory / "text_encoder" / "model.safetensors")
        for directory in (saved, model_directory)
    ]
    matrices = [w["text_model.embeddings.token_embedding.weight"] for w in weights]
    assert torch.equal(matrices[0].half(), matrices[1].half())
    assert (trainer.directory / "run-toy" / "toy.safetensors").is_file()


def test_cached_text_is_refused(write, model_directory, tmp_path):
    from preprocess.text_cache import cache_text

    data = tiny.save_dataset(tmp_path / "data")
    cache_text(directory=data, model=str(model_directory), prefix="<toy>, ")
    with pytest.raises(ConfigError, match=r"networks\.toy changes text_encoders\.0"):
        assemble(write(dataset={"path": str(data), "text_cache": True}))


def test_faults_are_said_before_anything_is_loaded(write_config):
    network = {"module": PATH, "args": {"tokens": {"<toy>": {"init": "cat", "vector": 2}}}}
    with pytest.raises(ConfigError, match=r"tokens\.<toy>\.vector: no such key.*'vectors'"):
        assemble(write_config(networks={"toy": network}))
    network = {"module": PATH, "args": {"tokens": {"cat": "dog"}}}
    with pytest.raises(ConfigError, match=r"networks\.toy: 'cat' is a token of the text encoder"):
        assemble(write_config(networks={"toy": network}))


def test_a_trial_needs_no_weights(write, capsys):
    assert Trainer.from_config(load(write()), check=True) is None
