"""The engine under random schedules, against a slow reference: each thread alone, by a plain forward pass."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import apr.engine.slots
from apr.engine.interface import Sampling
from apr.engine.runners import static
from apr.engine.runners.native import NativeModel
from apr.engine.runners.padded import PaddedModel
from apr.engine.runners.static import StaticModel
from apr.engine.scheduler import uniforms
from apr.engine.slots import SlotEngine

VOCABULARY, WINDOW = 23, 40
STOP = frozenset(range(4))
TOKENS = st.integers(6, VOCABULARY - 1)


@pytest.fixture(scope="module")
def model(tiny_llama):
    return tiny_llama(VOCABULARY, WINDOW, num_attention_heads=4, num_key_value_heads=2)


@st.composite
def threads(draw):
    """What happens to one thread, whatever the others do."""
    return {
        "prompt": draw(st.lists(TOKENS, min_size=1, max_size=9)),
        "joins": draw(st.lists(st.lists(TOKENS, min_size=0, max_size=6), max_size=3)),
        "temperature": draw(st.sampled_from([0.0, 0.5, 1.0])),
        "limit": draw(st.integers(12, WINDOW)),
        "opened_at": draw(st.integers(0, 12)),
        "closed_after": draw(st.one_of(st.none(), st.integers(0, 15))),
        "shortened_by": draw(st.one_of(st.none(), st.integers(1, 8))),
        "rank": draw(st.integers(0, 2)),
    }


def play(engine, plans):
    """Runs the plans: {key: [(segment or joined ids)]} of those that were not closed halfway."""
    told = {key: [] for key in range(len(plans))}
    lengths, joins, opened, steps = {}, {}, set(), 0
    while engine.busy or len(opened) < len(plans):
        for key, plan in enumerate(plans):
            if key not in opened and plan["opened_at"] <= steps:
                sampling = Sampling(plan["temperature"], 1000 + key)
                engine.open(key, plan["prompt"], sampling, plan["limit"], plan["rank"])
                opened.add(key)
                lengths[key], joins[key] = len(plan["prompt"]), list(plan["joins"])
                if plan["shortened_by"] and plan["limit"] - plan["shortened_by"] > lengths[key]:
                    engine.shorten(key, plan["limit"] - plan["shortened_by"])
            after = plan["closed_after"]
            if key in lengths and after is not None and steps >= plan["opened_at"] + after:
                engine.close(key)
                del lengths[key], told[key]
        for key, segment in engine.step():
            told[key].append(segment)
            lengths[key] += len(segment.ids)
            if joins[key] and segment.reason == "stop" and lengths[key] + len(joins[key][0]) < WINDOW:
                ids = joins[key].pop(0)
                told[key].append(ids)
                lengths[key] += len(ids)
                engine.extend(key, ids, WINDOW)
            else:
                engine.close(key)
                del lengths[key]
        steps += 1
        assert steps < 2000
    return told


def check(model, plan, key, parts):
    """Every sampled token is the one that its noise draws from a plain pass over what stands before it."""
    ids, sampled = list(plan["prompt"]), []
    for part in parts:
        if not isinstance(part, list):
            sampled += [(len(ids) + place, value) for place, value in enumerate(part.logprobs)]
        ids += part if isinstance(part, list) else part.ids
    with torch.no_grad():
        logits = model(torch.tensor([ids]), use_cache=False).logits[0].double()
    scaled = torch.log_softmax(logits / (plan["temperature"] or 1.0), -1).numpy()
    for position, logprob in sampled:
        before, token = scaled[position - 1], ids[position]
        assert logprob == pytest.approx(before[token], abs=2e-5)
        if plan["temperature"] == 0:
            assert before[token] >= before.max() - 2e-5
        else:
            (noise,) = uniforms(np.array([1000 + key]), np.array([position]))
            edges = np.concatenate([[0.0], np.exp(before).cumsum()])
            assert edges[token] - 2e-5 <= noise * edges[-1] <= edges[token + 1] + 2e-5


schedule = given(plans=st.lists(threads(), min_size=1, max_size=9), slots=st.integers(1, 5))
health = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}


@pytest.mark.parametrize("kind", [NativeModel, PaddedModel])
@settings(max_examples=40, **health)
@schedule
def test_any_schedule_of_joins_closings_and_cuts_in_any_number_of_slots(model, kind, plans, slots):
    check_schedule(model, kind, plans, slots)


@settings(max_examples=12, **health)
@schedule
def test_any_schedule_in_passes_that_are_replayed(model, tapes, plans, slots):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(static, "ROWS", 2)
        patch.setattr(static, "REACH", 8)
        check_schedule(model, StaticModel, plans, slots)


def check_schedule(model, kind, plans, slots):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(apr.engine.slots, "runner_of", lambda model: kind)
        check_decoder(model, SlotEngine(model, STOP, slots, WINDOW), plans)


def check_decoder(model, decoder, plans):
    """Any `Decoder` of the model keeps the contract, whatever the plans."""
    told = play(decoder, plans)
    for key, parts in told.items():
        plan = plans[key]
        check(model, plan, key, parts)
        first = parts[0]
        limit = plan["limit"] - (plan["shortened_by"] or 0)
        limit = limit if limit > len(plan["prompt"]) else plan["limit"]
        assert len(plan["prompt"]) + len(first.ids) <= limit
        assert first.reason == ("stop" if first.ids[-1] in STOP else "length")
