"""Prompt lookup in the form of Spec-Bench's files (Saxena, 2023, github.com/apoorvumang/prompt-lookup-decoding).

Drafts are the tokens that followed the newest ones earlier in the text. Run it beside everything else:

    roobench --method pld --peer spec-bench:file=templates/spec-bench/inference_lookup.py
"""

import argparse

import torch
from evaluation.eval import reorg_answer_file, run_eval
from fastchat.utils import str_to_torch_dtype
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache


def look_up(ids, ngram, drafts):
    """Return what followed the newest `ngram` tokens where they last stood before, at most `drafts` tokens."""
    newest = ids[-ngram:]
    for start in range(len(ids) - ngram - 1, -1, -1):
        if ids[start : start + ngram] == newest:
            return ids[start + ngram : start + ngram + drafts]
    return []


def lookup_forward(inputs, model, tokenizer, max_new_tokens, ngram=2, drafts=10):
    """Decode greedily; returns ids [1, prompt + new], new tokens, steps, and what each step added."""
    ids = inputs.input_ids[0].tolist()
    prompt, accept_lengths, cache = len(ids), [], DynamicCache()
    ids.append(int(model(inputs.input_ids, past_key_values=cache).logits[0, -1].argmax()))
    while len(ids) - prompt < max_new_tokens and ids[-1] != tokenizer.eos_token_id:
        draft = look_up(ids, ngram, min(drafts, max_new_tokens - (len(ids) - prompt) - 1))
        rows = torch.tensor([[ids[-1], *draft]], device=inputs.input_ids.device)
        best = model(rows, past_key_values=cache).logits[0].argmax(-1).tolist()
        accepted = next((place for place, token in enumerate(draft) if token != best[place]), len(draft))
        new = best[: accepted + 1]
        if tokenizer.eos_token_id in new:
            new = new[: new.index(tokenizer.eos_token_id) + 1]
        ids += new
        if (behind := cache.get_seq_length() - (len(ids) - 1)) > 0:
            cache.crop(-behind)
        accept_lengths.append(len(new))
    return torch.tensor([ids]), len(ids) - prompt, len(accept_lengths), accept_lengths


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--model-id", required=True)
    parser.add_argument("--answer-file", default="answers.jsonl")
    parser.add_argument("--max-new-tokens", type=int, default=1024)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--ngram", type=int, default=2)
    parser.add_argument("--drafts", type=int, default=10)
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.model_path, dtype=str_to_torch_dtype(args.dtype))
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(args.model_path)
    run_eval(
        model=model,
        tokenizer=tokenizer,
        forward_func=lookup_forward,
        model_id=args.model_id,
        question_file="data/spec_bench/question.jsonl",
        question_begin=None,
        question_end=None,
        answer_file=args.answer_file,
        max_new_tokens=args.max_new_tokens,
        num_choices=1,
        num_gpus_per_model=1,
        num_gpus_total=1,
        ngram=args.ngram,
        drafts=args.drafts,
    )
    reorg_answer_file(args.answer_file)
