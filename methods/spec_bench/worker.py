"""Runs a file of Spec-Bench's form in its own interpreter: `python worker.py FILE ARGUMENTS...`; imports none of ours.

Such a file loads its model and calls `run_eval(model=..., tokenizer=..., forward_func=..., ...)` of `evaluation.eval`
(github.com/hemingkx/Spec-Bench). Here that function answers requests: one JSON object a line comes in on standard
input, and one goes out for it on what was standard output. Whatever the file prints goes to standard error.
"""

import importlib
import importlib.util
import json
import os
import runpy
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

# What `run_eval` keeps for itself; all else goes on to `forward_func`.
_OWN: tuple[str, ...] = (
    "model_id",
    "question_file",
    "question_begin",
    "question_end",
    "answer_file",
    "max_new_tokens",
    "num_choices",
)
_OWN += ("num_gpus_per_model", "num_gpus_total")


class Heads:
    """Watches the LM head: its first call ends the prefill."""

    def __init__(self, model: Any, tokenizer: Any, torch: Any) -> None:
        """Watches every linear layer that gives a logit a token."""
        config = getattr(model, "config", None) or getattr(getattr(model, "base_model", None), "config", None)
        vocab = getattr(config, "vocab_size", None) or len(tokenizer)
        found = model if isinstance(model, torch.nn.Module) else getattr(model, "base_model", None)
        modules = found.modules() if isinstance(found, torch.nn.Module) else ()
        heads = [part for part in modules if isinstance(part, torch.nn.Linear) and part.out_features == vocab]
        self.torch, self.calls = torch, 0
        self.first_s: Any = None
        for head in heads:
            head.register_forward_hook(self._called)

    def _called(self, *_: Any) -> None:
        self.calls += 1
        if self.calls == 1:
            self.first_s = now_s(self.torch)

    def forget(self) -> None:
        """Start a new answer."""
        self.calls, self.first_s = 0, None


def now_s(torch: Any) -> float:
    """Return the host's clock, after the device has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def serve(replies: IO[str]) -> Callable[..., None]:
    """Return what takes the place of `run_eval`: it answers requests until there are no more."""

    def run_eval(model: Any, tokenizer: Any, forward_func: Any, **given: Any) -> None:
        import torch
        import transformers

        if hasattr(model, "eval"):
            model.eval()
        more = {key: value for key, value in given.items() if key not in _OWN}
        heads = Heads(model, tokenizer, torch)
        device = getattr(model, "device", None) or next(model.parameters()).device
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        versions["python"] = sys.version.split()[0]
        reply(replies, {"versions": versions, "device": str(device)})
        for line in sys.stdin:
            asked = json.loads(line)
            ids = torch.tensor([asked["prompt"]], device=device)
            inputs = transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            torch.manual_seed(0)
            heads.forget()
            try:
                with torch.inference_mode():
                    start_s = now_s(torch)
                    out, new, steps, accepted = forward_func(inputs, model, tokenizer, asked["limit"], **more)
                    end_s = now_s(torch)
                row = out[0].tolist() if hasattr(out[0], "tolist") else list(out[0])
                said = {
                    "ids": row[len(asked["prompt"]) :],
                    "new_tokens": int(new),
                    "steps": int(steps),
                    "accept_lengths": [int(length) for length in accepted],
                    "total_s": end_s - start_s,
                    "first_s": None if heads.first_s is None else heads.first_s - start_s,
                    "head_calls": heads.calls,
                }
            except Exception as error:  # told, and the next question is asked
                said = {"error": f"{type(error).__name__}: {error}"}
            reply(replies, said)

    return run_eval


def reply(replies: IO[str], content: Any) -> None:
    """Write one JSON object on a line."""
    replies.write(json.dumps(content) + "\n")
    replies.flush()


def stand_in(name: str, **contents: Any) -> types.ModuleType:
    """Make a module known."""
    module = types.ModuleType(name)
    vars(module).update(contents)
    sys.modules[name] = module
    return module


def main() -> None:
    """Run the file as its own command would."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    file = Path(sys.argv[1]).resolve()
    root = file.parent.parent if file.parent.name == "evaluation" else file.parent
    os.chdir(root)
    sys.path[:0] = [str(root)]
    stand_in("evaluation", __path__=[str(file.parent)])
    stand_in("evaluation.eval", run_eval=serve(replies), reorg_answer_file=lambda *_, **__: None)
    if importlib.util.find_spec("fastchat") is None:  # of which such files take one function
        stand_in("fastchat", __path__=[])
        stand_in("fastchat.utils", str_to_torch_dtype=lambda name: getattr(importlib.import_module("torch"), name))
    sys.argv = [str(file), *sys.argv[2:]]
    runpy.run_path(str(file), run_name="__main__")


if __name__ == "__main__":
    main()
