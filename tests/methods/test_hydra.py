"""Hydra's heads, prefix layer, tree and files, against a literal float64 reading of the authors' forward pass."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

import methods
from bench.drafting.loop import decode, open_sequence, speculate
from bench.engine.weights import DecoderConfig
from bench.errors import UserError
from methods.hydra.heads import PUBLISHED, count_parameters
from methods.hydra.method import Hydra, HydraConfig
from tests.methods.tiny_weights import hydra as tiny_hydra

NEVER = frozenset()
TREE = "0/1/2/0-0/0-3/2-1/0-3-0/0-3-2/2-1-0"  # expands others than the first choices


@pytest.fixture
def setting(tiny_model, tiny_decoder):
    """(hf_model, our decoder)."""
    config, model = tiny_model("tied", faint=True)
    return model, tiny_decoder(config, model, max_len=128)


@pytest.fixture
def hydra(setting, tiny_weights):
    """(options of the weights, knobs) -> the method."""

    def build(options=None, **knobs):
        folder = tiny_weights("hydra", setting[0], **(options or {}))
        return Hydra(setting[1], HydraConfig(weights=str(folder), **knobs))

    return build


@torch.inference_mode()
def proposal(method, sequence, budget=9):
    (draft,) = method.propose([sequence], [budget])
    return draft


class Literal:
    """The authors' draft model in float64: their prefix layer is transformers' own model of one layer."""

    def __init__(self, model, folder):
        stored = torch.load(folder / "hydra_lm_head.pt", weights_only=True)
        self.weights = {name: tensor.double() for name, tensor in stored.items()}
        self.blocks = json.loads((folder / "config.json").read_text())["hydra_num_layers"]
        self.model, self.prefix = copy.deepcopy(model).double(), tiny_hydra.prefix_model(model).double()
        named = {name: t for name, t in self.weights.items() if name.startswith("prefix_embeding_layer.")}
        self.prefix.load_state_dict({name.partition(".")[2]: tensor for name, tensor in named.items()})

    def linear(self, x, name):
        return self.weights[f"{name}.weight"] @ x + self.weights[f"{name}.bias"]

    def chances(self, state, tokens):
        """Head `len(tokens) - 1`'s probabilities, after the prefix state, the newest token and drafts behind it."""
        head, embedding = len(tokens) - 1, self.model.get_input_embeddings().weight
        x = torch.cat([state, *(embedding[token] for token in tokens)])
        first = f"hydra_mlp.{head}.1"
        x = self.linear(x, f"{first}.res_connection") + F.silu(self.linear(x, f"{first}.linear"))
        for block in range(1, self.blocks):
            x = x + F.silu(self.linear(x, f"hydra_mlp.{head}.{2 * block + 1}.linear"))
        return self.linear(x, f"hydra_lm_head.{head}.1").softmax(-1)

    def tree(self, context, paths):
        """Token and probability of each node, all from the text alone, without a cache."""
        with torch.no_grad():
            states = self.model(torch.tensor([context[:-1]]), output_hidden_states=True).hidden_states[-1]
            state = self.prefix(inputs_embeds=states).last_hidden_state[0, -1]
            found = {(): ([context[-1]], 1.0)}
            for path in paths:
                before = found[path[:-1]][0]
                best = self.chances(state, before).topk(path[-1] + 1)
                found[path] = [*before, int(best.indices[-1])], float(best.values[-1])
        return [found[path][0][-1] for path in paths], [found[path][1] for path in paths]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("options", [{"useful": True}, {"useful": False}, {"useful": False, "layers": 1}], ids=str)
@pytest.mark.parametrize("kind", ["vicuna", "llama3", "biased"])
def test_drafts_are_those_of_the_authors_forward(
    kind, options, dtype, tiny_model, tiny_decoder, tiny_weights, random_ids
):
    """After the prompt (uncached), and after steps that read one or several rows more, of other than first branches."""
    config, model = tiny_model(kind, faint=True)
    folder = tiny_weights("hydra", model, **options)
    literal = Literal(model, folder)
    method = Hydra(tiny_decoder(config, model, dtype=dtype), HydraConfig(weights=str(folder), tree=TREE))
    paths = sorted((tuple(map(int, node.split("-"))) for node in TREE.split("/")), key=lambda path: (len(path), path))
    read = set()
    for prompt in (random_ids(12, seed=1), random_ids(1, seed=2)):
        sequence = open_sequence(method, prompt)
        for _ in range(6):
            draft = proposal(method, sequence)
            tokens, chances = literal.tree(sequence.context, paths)
            assert list(draft.tokens) == tokens
            assert draft.confidences == pytest.approx(chances, rel=1e-3 if dtype == torch.float32 else 1e-5)
            assert draft.parents == [-1, -1, -1, 0, 0, 2, 4, 4, 5]
            speculate(method, [sequence], [10])
            read.add(sequence.notes.unread.shape[1])
    assert read >= ({2, 3} if options["useful"] else {1})


@torch.inference_mode()
def test_sequences_that_draft_together_draft_as_each_does_alone(hydra, random_ids):
    """With trees of different depths, and one sequence that has no budget."""
    method, prompts, budgets = hydra(), [random_ids(n, seed=n) for n in (5, 12, 7, 9)], [9, 2, 0, 1]
    alone = [proposal(method, open_sequence(method, one), budget) for one, budget in zip(prompts, budgets, strict=True)]
    together = [open_sequence(method, prompt, slot=slot) for slot, prompt in enumerate(prompts)]
    drafts = method.propose(together, budgets)
    assert len({tuple(draft.tokens) for draft in drafts}) == len(drafts)
    for draft, own in zip(drafts, alone, strict=True):
        assert (draft.tokens, draft.parents) == (own.tokens, own.parents)
        assert (draft.confidences or []) == pytest.approx(own.confidences or [], rel=1e-5)


def test_eight_bit_heads_draft_nearly_the_same(tiny_config, tiny_decoder, tiny_weights, random_ids, hf_greedy):
    torch.manual_seed(3)
    config = tiny_config("vicuna", hidden_size=64, intermediate_size=96)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    decoder, prompt = tiny_decoder(config, model), random_ids(12, seed=1)
    if decoder.layout != "native":
        pytest.skip("eight bits need the engine's kernels")
    folder, found = str(tiny_weights("hydra", model, useful=False)), []
    for draft_weights in ("plain", "q8"):
        method = Hydra(decoder, HydraConfig(weights=folder, draft_weights=draft_weights))
        assert decode(method, prompt, 20, NEVER).token_ids == hf_greedy(model, prompt, 20)
        with torch.inference_mode():
            (state,) = method._read([open_sequence(method, prompt)])
            found.append(method.network.head(0, torch.cat((state, decoder.embed([7])[0]), dim=-1)))
    assert 0 < (found[0] - found[1]).norm() < 0.05 * found[0].norm()


# --- tree and knobs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 1, 2, 5])
def test_no_path_is_longer_than_the_budget(budget, hydra, random_ids):
    method = hydra(tree="0/1/0-0/0-0-0")
    draft = proposal(method, open_sequence(method, random_ids(5)), budget)
    assert len(draft.tokens) == {0: 0, 1: 2, 2: 3, 5: 4}[budget]


def test_the_authors_tree_is_the_default_and_is_cut_to_the_heads(hydra):
    sizes = {heads: hydra({"heads": heads}).widest - 1 for heads in (1, 3, 4)}
    assert sizes == {1: 10, 3: 10 + 28 + 23, 4: 63}


def test_members_of_a_composition_leave_no_gap_in_the_prefix_layer(setting, tiny_weights, random_ids, hf_greedy):
    model, decoder = setting
    folder = tiny_weights("hydra", model)
    variant = methods.parse(f"pld:ngram=2,tokens=3,follow=3,least=1,stop=never+hydra:weights={folder},tree=chain")
    method, literal = variant.method(decoder, variant.config), Literal(model, folder)
    prompt = random_ids(6, seed=1) * 3
    assert decode(method, prompt, 40, NEVER).token_ids == hf_greedy(model, prompt, 40)
    sequence, paths = open_sequence(method, prompt), [(0,), (0, 0), (0, 0, 0)]
    parts = set()
    for _ in range(12):
        draft = proposal(method, sequence)
        if draft.part:
            assert list(draft.tokens) == literal.tree(sequence.context, paths)[0]
        parts.add(draft.part)
        speculate(method, [sequence], [10])
    assert parts == {0, 1}


def test_probing_takes_a_chain_of_all_heads(hydra):
    method = hydra({"heads": 4}, tree="0")
    config, reach = method.probing(3)
    assert (config.tree, reach, method.probing(9)[1]) == ("chain", 3, 4)
    assert Hydra(method.target, config).config.tree == "0/0-0/0-0-0/0-0-0-0"


# --- size ------------------------------------------------------------------------------------------------------------


def test_sizes_on_vicuna_7b_are_those_of_the_published_heads():
    d, vocab = 4096, 32000
    shapes = PUBLISHED.shapes(DecoderConfig.from_hf(LlamaConfig(tie_word_embeddings=False)))
    parts = {
        "hydra_lm_head.": 4 * (vocab * d + vocab),
        "prefix_": 4 * d * d + 3 * d * 11008 + 3 * d,
        "hydra_mlp.": 2 * (2 + 3 + 4 + 5) * d * d + 4 * 2 * d + 4 * (d * d + d),  # first blocks, and the later one
    }
    for prefix, expected in parts.items():
        assert count_parameters({name: s for name, s in shapes.items() if name.startswith(prefix)}) == expected
    assert count_parameters(shapes) == sum(parts.values()) == 1_263_723_520


def test_extra_parameters_are_those_of_the_heads_in_use(hydra, setting, tiny_weights):
    stored = torch.load(tiny_weights("hydra", setting[0]) / "hydra_lm_head.pt", weights_only=True)
    used = [name for name in stored if "embed" not in name.partition(".")[2] and not name.startswith("input_embed")]
    used = [name for name in used if not name.split(".", 2)[-1].startswith(("5.", "7."))]  # block 3, once more
    sizes = {head: sum(stored[n].numel() for n in used if n.startswith((f"hydra_mlp.{head}", f"hydra_lm_head.{head}")))
             for head in range(3)}  # fmt: skip
    prefix = sum(stored[name].numel() for name in used if name.startswith("prefix_"))
    assert hydra(tree="chain").extra_parameters == prefix + sum(sizes.values())
    assert hydra(tree="0/1").extra_parameters == prefix + sizes[0]


# --- files -----------------------------------------------------------------------------------------------------------


def test_half_precision_and_buffers_of_older_files_are_read(setting, tiny_weights, random_ids, hf_greedy):
    model, decoder = setting
    folder = tiny_weights("hydra", model, tensors={"input_embed_fn.weight": None})
    stored = torch.load(folder / "hydra_lm_head.pt", weights_only=True)
    stored["prefix_embeding_layer.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    torch.save({name: tensor.half() for name, tensor in stored.items()}, folder / "hydra_lm_head.pt")
    method = Hydra(decoder, HydraConfig(weights=str(folder)))
    answer = decode(method, random_ids(12, seed=1), 20, NEVER)
    assert answer.token_ids == hf_greedy(model, random_ids(12, seed=1), 20)
    assert sum(step.accepted for step in answer.steps)


NAN = torch.full((48,), float("nan"))
FIRST, LATER = "hydra_mlp.1.1.res_connection.weight", "hydra_mlp.1.5.linear.weight"
WRONG = {
    "a missing weight": ({"tensors": {FIRST: None}}, {}, f"{FIRST} is missing, expected (48, 144)"),
    "a missing copy": ({"tensors": {LATER: None}}, {}, f"{LATER} is missing"),
    "a copy that differs": ({"tensors": {LATER: torch.ones(48, 48)}}, {}, f"{LATER} differs from hydra_mlp.1.3.lin"),
    "an unknown weight": ({"tensors": {"hydra_mlp.3.1.linear.bias": NAN * 0 + 1}}, {}, "has NaN"),
    "a head too many": ({"tensors": {"hydra_mlp.3.1.linear.bias": torch.ones(48)}}, {}, "also has hydra_mlp.3.1."),
    "more heads than stored": ({"changes": {"hydra_num_heads": 4}}, {}, "hydra_mlp.3.1.linear.weight is missing"),
    "fewer heads than stored": ({"changes": {"hydra_num_heads": 2}}, {}, "it also has hydra_lm_head.2.1.bias"),
    "fewer blocks than stored": ({"changes": {"hydra_num_layers": 3}}, {}, "it also has hydra_mlp.0.7.linear.bias"),
    "a wrong shape": ({"tensors": {FIRST: torch.ones(48, 96)}}, {}, f"{FIRST} has shape (48, 96), expected (48, 144)"),
    "codes": ({"tensors": {FIRST: torch.ones(48, 144, dtype=torch.int8)}}, {}, f"{FIRST} has torch.int8"),
    "another model": (
        {"tensors": {"prefix_embeding_layer.norm.weight": torch.ones(64)}}, {}, "another model: its hidden size is 64"
    ),
    "another architecture": (
        {"changes": {"hydra_head_arch": "mlp"}}, {}, "has hydra_head_arch=mlp, but only prefix-mlp can be used"
    ),
    "independent heads": ({"changes": {"grounded_heads": False}}, {}, "has grounded_heads=False"),
    "states of an earlier layer": ({"changes": {"hidden_state_offset": 2}}, {}, "has hidden_state_offset=2"),
    "an odd number of heads": ({"changes": {"hydra_num_heads": "four"}}, {}, "hydra_num_heads: "),
    "no blocks": ({"changes": {"hydra_num_layers": 0}}, {}, "hydra_num_layers: "),
    "a tree too deep": ({}, {"tree": "0/0-0/0-0-0/0-0-0-0"}, "4 drafts deep, but only 3 heads draft"),
    "a rank beyond the vocabulary": ({}, {"tree": "0/272"}, "has rank 272, but heads rank 272 tokens"),
}  # fmt: skip


@pytest.mark.parametrize(("options", "knobs", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(options, knobs, said, hydra):
    with pytest.raises(UserError) as error:
        hydra(options, **knobs)
    assert said in str(error.value)


def test_a_configuration_is_refused_before_weights_are_read(setting, tiny_weights):
    model, decoder = setting
    folder = tiny_weights("hydra", model, changes={"hydra_head_arch": "eagle-attn"})
    (folder / "hydra_lm_head.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match="eagle-attn"):
        Hydra.check_weights(HydraConfig(weights=str(folder)), decoder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json: No such file"):
        Hydra.check_weights(HydraConfig(weights=str(folder)), decoder)


def test_where_there_are_no_weights_the_authors_are_named():
    for given, said in (
        ("hydra", "no weights of hydra come with the project"),
        ("hydra:weights=a/b/c", "a/b/c is n"),
    ):
        with pytest.raises(UserError, match=said) as error:
            methods.parse(given).check_files("tiny")
        assert "ankner/hydra-vicuna-7b-v1.3" in str(error.value)
        assert "train" not in str(error.value)


@pytest.mark.parametrize(
    ("knobs", "said"),
    [("tree=auto", "tree=auto is neither chain, none, mc_sim"), ("draft_weights=q4", "draft_weights=q4"),
     ("drafts=sampled", "has no knob")],
)  # fmt: skip
def test_bad_knobs_are_refused_before_anything_is_read(knobs, said):
    with pytest.raises(UserError, match=said):
        methods.parse(f"hydra:{knobs}")


def test_heads_may_come_from_the_hub(setting, tiny_weights, monkeypatch):
    model, decoder = setting
    folder, asked = tiny_weights("hydra", model), []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda name, *, allow_patterns, **given: asked.append((name, allow_patterns)) or str(folder),
    )
    method = Hydra(decoder, HydraConfig(weights="ankner/hydra-vicuna-7b-v1.3"))
    files = ["config.json", "hydra_lm_head.pt", "hydra_lm_head.pt.index.json", "hydra_lm_head-*.pt"]  # or shards of it
    assert asked == [("ankner/hydra-vicuna-7b-v1.3", files)]
    assert len(method.notes["weights_sha256"]) == 64
