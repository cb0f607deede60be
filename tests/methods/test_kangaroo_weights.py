"""Kangaroo's adapters on the disk: our format, the authors', and what is wrong with those that do not fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.drafting.loop import decode
from bench.drafting.stopping import Calibration
from bench.engine.decoder import Decoder
from bench.errors import UserError
from methods.kangaroo.adapter import Stored, load_adapter, save_adapter
from methods.kangaroo.method import Kangaroo, KangarooConfig

O_PROJ = "layers.0.self_attn.o_proj.weight"


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model("tied", faint=True)[1]


@pytest.fixture(scope="module")
def decoder(model, tiny_decoder) -> Decoder:
    return tiny_decoder(model.config, model)


@pytest.fixture
def refused(decoder):
    """(folder, knobs) -> why a method with this adapter is refused."""

    def build(folder: Path, **knobs) -> str:
        with pytest.raises(UserError) as refusal:
            Kangaroo(decoder, KangarooConfig(weights=str(folder), **knobs))
        return str(refusal.value)

    return build


def steps(decoder, folder, prompt, **knobs):
    answer = decode(Kangaroo(decoder, KangarooConfig(weights=str(folder), **knobs)), prompt, 30, frozenset())
    return [(step.emitted, step.drafted, step.accepted) for step in answer.steps]


def test_the_authors_folder_works_like_ours(model, decoder, tiny_adapter, random_ids):
    prompt = random_ids(11, seed=1)
    ours = steps(decoder, tiny_adapter(model), prompt, gamma=3, threshold=0.2)
    authors = steps(decoder, tiny_adapter(model, authors=True), prompt, gamma=3, threshold=0.2, exit_layer=1)
    assert ours == authors
    assert sum(accepted for _, _, accepted in ours) > 5


def test_half_precision_weights_are_read(model, decoder, tiny_adapter):
    folder = tiny_adapter(model, authors=True)
    weights = torch.load(folder / "pytorch_model.bin")
    torch.save({name: tensor.half() for name, tensor in weights.items()}, folder / "pytorch_model.bin")
    adapter, stored = load_adapter(folder, decoder)
    assert stored == Stored()
    assert torch.equal(adapter.o.weight, weights[O_PROJ].half().float())


def test_what_is_saved_is_what_is_loaded(model, decoder, tiny_adapter, tmp_path):
    ranking = [5, 3, 200]
    folder = tiny_adapter(model, ranking=ranking, changes={"exit_layer": 2, "draft_vocab": 3})
    adapter, _ = load_adapter(folder, decoder)
    curve = tuple(i / 20 for i in range(21))
    calibration = Calibration(curve, curve[::-1])
    save_adapter(tmp_path, adapter, Stored(torch.tensor(ranking), calibration, {"gamma": 3}))
    again, found = load_adapter(tmp_path, decoder)
    assert found.ranking.tolist() == ranking
    assert (found.calibration, found.knobs) == (calibration, {"gamma": 3})
    assert again.config == adapter.config
    for (name, saved), (_, loaded) in zip(adapter.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(saved.half().float(), loaded), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter.safetensors", "config.json"]


def test_the_adapter_follows_the_targets_dtype(model, tiny_decoder, tiny_adapter, random_ids):
    decoder = tiny_decoder(model.config, model, dtype=torch.bfloat16)
    method = Kangaroo(decoder, KangarooConfig(weights=str(tiny_adapter(model))))
    assert {p.dtype for p in method.adapter.parameters()} == {torch.bfloat16}
    assert method.adapter.cos.dtype == method._cache(0).keys.dtype == torch.bfloat16
    assert len(decode(method, random_ids(5), 10, frozenset()).token_ids) == 10


def test_records_show_the_knobs_that_ran(model, decoder, tiny_adapter):
    folder = tiny_adapter(model, ranking=list(range(50)), changes={"exit_layer": 2, "draft_vocab": 40})
    left_open = Kangaroo(decoder, KangarooConfig(weights=str(folder)))
    assert (left_open.config.exit_layer, left_open.config.draft_vocab, left_open.exit_layer) == (2, 40, 2)
    assert left_open.draft_ids.tolist() == list(range(40))
    whole = Kangaroo(decoder, KangarooConfig(weights=str(folder), draft_vocab=0))
    assert whole.config.draft_vocab == 0
    assert whole.draft_ids is None
    assert whole.extra_parameters == left_open.extra_parameters == 4 * 48**2 + 2 * 48


def test_the_exit_layer_must_be_known(model, tiny_adapter, refused):
    said = refused(tiny_adapter(model, authors=True))
    assert "exit layer" in said
    assert "kangaroo:exit_layer=2" in said


@pytest.mark.parametrize("layer", [4, 9])
def test_an_exit_layer_must_leave_layers_to_verify(layer, model, tiny_adapter, refused):
    said = refused(tiny_adapter(model, authors=True), exit_layer=layer)
    assert f"exit_layer={layer}" in said
    assert "4 layers" in said
    assert "tiny" in said


def test_an_adapter_is_not_used_at_another_exit_layer(model, tiny_adapter, refused):
    assert "exit layer 1, not 2" in refused(tiny_adapter(model), exit_layer=2)


def test_an_adapter_for_another_model_is_refused(model, tiny_adapter, refused):
    said = refused(tiny_adapter(model, changes={"hidden_size": 64}))
    assert "64" in said
    assert "tiny's is 48" in said


@pytest.mark.parametrize("name", [O_PROJ, "norm.weight", "layers.0.input_layernorm.weight"])
@pytest.mark.parametrize("authors", [False, True])
def test_a_missing_tensor_is_named(name, authors, model, tiny_adapter, refused):
    folder = tiny_adapter(model, authors=authors, tensors={name: None})
    assert f"{name} is missing" in refused(folder)


def test_what_is_no_tensor_is_named(model, tiny_adapter, refused):
    folder = tiny_adapter(model, authors=True)
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    torch.save({**weights, O_PROJ: [1.0]}, folder / "pytorch_model.bin")
    assert f"{O_PROJ} is a list, and not a named tensor" in refused(folder, exit_layer=1)


def test_a_tensor_of_the_wrong_shape_is_named(model, tiny_adapter, refused):
    said = refused(tiny_adapter(model, tensors={O_PROJ: torch.zeros(48, 40)}))
    assert f"{O_PROJ} has shape (48, 40), expected (48, 48)" in said


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": None},
        {"rms_norm_eps": None},
        {"hidden_size": None},
        {"num_attention_heads": 5},
        {"num_attention_heads": 48},
        {"num_attention_heads": 0},
        {"num_attention_heads": "4"},
        {"num_attention_heads": 4.0},
        {"hidden_size": -48},
        {"hidden_size": 10**12},
        {"rms_norm_eps": 0},
        {"rms_norm_eps": "1e-6"},
        {"exit_layer": 1.5},
        {"exit_layer": -1},
        {"draft_vocab": True},
        {"ffn": 10**12},
        {"feedback": 1},
        {"num_hidden_layers": 2},
        {"colour": "red"},
        {"knobs": {"gamma": "six"}},
        {"knobs": {"gamma": 0}},
        {"knobs": {"stop": "early"}},
        {"knobs": {"threshold": 1.5}},
        {"knobs": {"colour": 1}},
        {"knobs": []},
        {"calibration": {"accepted": [0.5] * 20, "following": [0.5] * 21}},
        {"calibration": {"accepted": [2.0] * 21, "following": [0.5] * 21}},
        {"calibration": {"accepted": [0.5] * 21}},
    ],
    ids=str,
)
def test_a_malformed_config_is_refused(changes, model, tiny_adapter, refused):
    folder = tiny_adapter(model, changes=changes)
    said = refused(folder)
    assert str(folder) in said
    assert "config.json" in said
    (field,) = changes
    assert field in said


@pytest.mark.parametrize("content", [None, "{", "[]", "7", "[" * 100_000, '{"hidden_size": NaN}'])
def test_a_folder_without_a_usable_config_is_refused(content, model, tiny_adapter, refused):
    folder = tiny_adapter(model)
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "config.json").write_text(content)
    assert f"{folder} is no Kangaroo adapter" in refused(folder)


LATER_LAYER = "layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize("authors", [False, True])
@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({O_PROJ: torch.full((48, 48), float("nan"))}, f"{O_PROJ} has NaN or infinite values"),
        ({"norm.weight": torch.tensor([float("inf"), *[1.0] * 47])}, "norm.weight has NaN or infinite values"),
        ({"norm.weight": torch.full((48,), 1e300, dtype=torch.float64)}, "norm.weight has NaN or infinite values"),
        ({O_PROJ: torch.ones(48, 48, dtype=torch.int8)}, f"{O_PROJ} has torch.int8 instead of floating-point numbers"),
        ({O_PROJ: torch.ones(48, 48, dtype=torch.complex64)}, f"{O_PROJ} is a tensor of torch.complex64"),
        ({LATER_LAYER: torch.ones(48, 48)}, f"it also has {LATER_LAYER}"),
        ({"lm_head.weight": torch.ones(272, 48)}, "it also has lm_head.weight"),
    ],
    ids=["NaN", "infinite", "too large for float32", "int8", "complex", "a further layer", "unknown"],
)
def test_tensors_that_are_not_an_adapters_are_named(tensors, said, authors, model, tiny_adapter, refused):
    assert said in refused(tiny_adapter(model, authors=authors, tensors=tensors), exit_layer=1)


@pytest.mark.parametrize(
    ("ranking", "said"),
    [([5, 272], "token ids below 272, not 272"), ([5, -1], "below 272, not -1"), ([5, 5], "distinct ids")],
)
def test_a_ranking_must_be_of_the_targets_tokens(ranking, said, model, tiny_adapter, refused):
    assert said in refused(tiny_adapter(model, ranking=ranking))


def test_a_ranking_of_fractions_is_refused(model, tiny_adapter, refused):
    folder = tiny_adapter(model, tensors={"token_ranking": torch.rand(9)})
    assert "token ids below 272, not torch.float32" in refused(folder)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_hidden_layers": 2}, "num_hidden_layers"),
        ({"num_hidden_layers": "1"}, "num_hidden_layers"),
        ({"num_key_value_heads": 2}, "num_key_value_heads"),
        ({"num_attention_heads": 5}, "num_attention_heads"),
        ({"rope_theta": 500000.0}, "rope_theta"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_size": "48"}, "hidden_size"),
    ],
)
def test_authors_configs_of_another_network_are_refused(changes, field, model, tiny_adapter, refused):
    said = refused(tiny_adapter(model, authors=True, changes=changes), exit_layer=1)
    assert "config.json" in said
    assert field in said


def test_what_drafting_does_not_use_may_be_in_the_authors_file(model, decoder, tiny_adapter):
    extra = {"embed_tokens.weight": torch.ones(272, 48), "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(6)}
    adapter, _ = load_adapter(tiny_adapter(model, authors=True, tensors=extra), decoder)
    assert adapter.config.hidden_size == 48


@pytest.mark.parametrize(
    "content", [[1, 2], {1: torch.ones(2)}, "text", torch.ones(3), {"a": {"b": torch.ones(1)}}, None]
)
def test_pickles_of_odd_content_are_refused_in_our_words(content, model, tiny_adapter, refused):
    folder = tiny_adapter(model, authors=True)
    torch.save(content, folder / "pytorch_model.bin")
    said = refused(folder, exit_layer=1)
    assert f"the weights of the Kangaroo adapter in {folder} cannot be" in said
    assert "weights_only" not in said


def test_pickles_of_sparse_and_foreign_objects_are_refused_in_our_words(model, tiny_adapter, refused):
    folder = tiny_adapter(model, authors=True)
    for odd in (torch.ones(48, 48).to_sparse(), Path("x"), torch.ones(48, 48, device="meta")):
        torch.save({O_PROJ: odd}, folder / "pytorch_model.bin")
        said = refused(folder, exit_layer=1)
        assert "cannot be" in said
        assert "weights_only" not in said


def test_a_folder_without_weights_is_refused(model, tiny_adapter, refused):
    folder = tiny_adapter(model)
    (folder / "adapter.safetensors").unlink()
    said = refused(folder)
    assert "adapter.safetensors" in said
    assert "pytorch_model.bin" in said


@pytest.mark.parametrize("authors", [False, True])
@pytest.mark.parametrize("content", [b"", b"not weights", "half"])
def test_unreadable_weights_are_refused(authors, content, model, tiny_adapter, refused):
    folder = tiny_adapter(model, authors=authors)
    path = folder / ("pytorch_model.bin" if authors else "adapter.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    assert f"the weights of the Kangaroo adapter in {folder} cannot be read" in refused(folder, exit_layer=1)


def test_code_in_the_authors_file_does_not_run(model, tiny_adapter, refused, tmp_path):
    class Touch:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "it-ran",))

    folder = tiny_adapter(model, authors=True)
    weights = torch.load(folder / "pytorch_model.bin")
    torch.save({**weights, "extra": Touch()}, folder / "pytorch_model.bin")
    said = refused(folder, exit_layer=1)
    assert "cannot be read" in said
    assert "weights_only" not in said  # torch advises to run the code
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(("ranking", "known"), [(None, "the 0 tokens"), ([4, 2, 0], "at most 3")])
@pytest.mark.parametrize("size", [4, 200])
def test_a_draft_vocabulary_needs_a_ranking(size, ranking, known, model, tiny_adapter, refused):
    said = refused(tiny_adapter(model, ranking=ranking), draft_vocab=size)
    assert f"draft_vocab={size}" in said
    assert known in said
    assert "draft_vocab=0" in said


def test_a_draft_vocabulary_of_everything_is_the_whole_head(model, decoder, tiny_adapter):
    method = Kangaroo(decoder, KangarooConfig(weights=str(tiny_adapter(model)), draft_vocab=272))
    assert method.draft_ids is None
    assert method.draft_head is decoder.head


def test_a_model_without_a_packaged_adapter_says_how_to_get_one(decoder):
    with pytest.raises(UserError) as refusal:
        Kangaroo(decoder, KangarooConfig())
    for said in ("'tiny'", "train kangaroo", "weights="):
        assert said in str(refusal.value)


def test_the_packaged_adapter_is_found_by_the_models_name(model, tiny_decoder, tiny_adapter, monkeypatch, tmp_path):
    folder = tmp_path / "mine" / "kangaroo"
    folder.parent.mkdir()
    tiny_adapter(model, changes={"exit_layer": 3}).rename(folder)
    monkeypatch.setattr("bench.drafting.knobs.WEIGHTS_ROOT", tmp_path)
    assert Kangaroo(tiny_decoder(model.config, model, name="mine"), KangarooConfig()).exit_layer == 3
    assert json.loads((folder / "config.json").read_text())["exit_layer"] == 3
