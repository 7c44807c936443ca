from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, edit_yaml, wide_config
from transformers import AutoConfig, AutoModelForCausalLM

from commands.memory import main
from library.errors import InputError
from library.files import read_jsonl
from library.llm.base_checks import check_config
from library.llm.memory import planning
from library.llm.memory.formula import (
    HEAD_COLUMNS,
    PLAIN_HEAD_ROWS,
    Adapter,
    ComputeSettings,
    measure_sizes,
    predict_answering,
    predict_merging,
    predict_training,
)
from library.llm.memory.measuring import (
    CONTEXT_BYTES,
    SPARE,
    free_beside,
    free_bytes,
    measure_peak,
)
from library.llm.memory.misfit import ShorterLength
from library.llm.memory.planning import (
    LongestLengths,
    Way,
    batch_size_choices,
    check_merging,
    choose_batch_size,
    lengths_below,
    load_sizes,
    merged,
    offloaded_ways,
    on_cpu,
    plan_answering,
    plan_training,
    shorter_lengths,
)
from library.params import load_model_file, load_params
from library.paths import BASE_DIR
from library.units import GIB
from stages import base, clean, format

ALL = Adapter(16, "all-linear")
CUDA = ComputeSettings("nf4", True, ALL, torch.bfloat16, "cuda")


@pytest.fixture(scope="module")
def half_billion():
    return load_sizes(load_model_file("qwen2.5-0.5b-instruct", ROOT / "models"), ALL)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("0.5b", 0.494033), ("1.5b", 1.543714), ("3b", 3.085939), ("7b", 7.615617)],
)  # what the model cards say, and the hub counts
def test_parameters_are_counted_from_the_model_file_alone(name, billions):
    sizes = load_sizes(load_model_file(f"qwen2.5-{name}-instruct", ROOT / "models"), ALL)
    assert (sizes.linear + sizes.other) / 1e9 == pytest.approx(billions, abs=1e-6)


def test_sizes_are_those_of_the_model(tiny_dir):
    config = AutoConfig.from_pretrained(tiny_dir)
    sizes = measure_sizes(config, Adapter(4, ["q_proj", "down_proj"]))
    model = AutoModelForCausalLM.from_pretrained(tiny_dir)
    assert sizes.linear + sizes.other == sum(value.numel() for value in model.parameters())
    layer = model.model.layers[0]
    assert sizes.linear == 3 * sum(
        module.weight.numel() for module in layer.modules() if isinstance(module, torch.nn.Linear)
    )
    # r x (in + out) of each adapted layer: q is 64 x 64, down 64 x 64
    assert sizes.lora == 3 * 4 * (128 + 128)


def test_the_prediction_is_the_formula_worked_by_hand(half_billion):
    # 0.5B: 357,826,560 weights in linear layers, 136,206,208 others; LoRA r=16 has 8,798,208; 24
    # layers, 896 and 4,864 wide
    one = predict_training(half_billion, CUDA, 1, 2048, 350)
    assert one.weights == int(357_826_560 * (0.5 + 1 / 64 + 4 / 16384) + 136_206_208 * 2)
    assert one.adapter == 8_798_208 * 16
    assert one.activations == 2048 * 2 * 24 * 896
    # and one weight of the feed-forward layers, put back into 16 bits
    assert one.layer == int(2048 * 2 * (8.8 * 896 + 6.1 * 4864 + 3 * 128) + 896 * 4864 * 2)
    assert one.head == 350 * 32768 * 2 + 350 * 896 * 6
    assert one.attention == 0
    assert one.workspace == 8_519_680
    assert one.peak == one.weights + one.adapter + one.activations + one.layer + one.workspace
    assert one.scattered == int(0.1 * (one.activations + one.layer))
    assert one.needed == one.peak + one.scattered
    two = predict_training(half_billion, CUDA, 2, 2048, 350)
    assert two.attention == 2 * 2048**2 * 3
    asked = predict_answering(half_billion, CUDA, 1, 2000, 48)
    assert asked.activations == 2048 * 2 * 2 * 24 * 128
    assert asked.attention == 0


@pytest.mark.parametrize(
    ("name", "query", "normed"),
    [
        ("qwen2.5-0.5b-instruct", 14 * 64, 0),
        ("llama-3.2-1b-instruct", 32 * 64, 0),
        ("qwen3-0.6b", 16 * 128, 16 * 128 + 8 * 128),  # each head's queries and keys
        ("gemma-3-1b-it", 4 * 256, 4 * 256 + 256 + 2 * 1152),  # and what the blocks give
    ],
)
def test_what_a_layer_normalizes_beside_its_inputs_is_counted(name, query, normed):
    sizes = load_sizes(load_model_file(name, ROOT / "models"), ALL)
    assert (sizes.query, sizes.normed) == (query, normed)


def test_a_step_takes_what_was_predicted(project, tiny_dir):
    from peft import LoraConfig, get_peft_model
    from trl.trainer.utils import add_fused_lm_head

    config = wide_config()
    sizes = measure_sizes(config, ALL)
    for checkpointing in (False, True):
        model = AutoModelForCausalLM.from_config(config)
        add_fused_lm_head(model)
        model = get_peft_model(
            model, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear")
        )
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        ids = torch.randint(0, 4000, (2, 512))
        trainable = [value for value in model.parameters() if value.requires_grad]

        def step(model=model, ids=ids, trainable=trainable):
            model(
                input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, fused_lm_head=True
            ).loss.backward()
            torch.optim.AdamW(trainable).step()

        measured = sum(value.nbytes for value in model.parameters()) + measure_peak(
            torch.device("cpu"), step
        )
        predicted = predict_training(
            sizes, ComputeSettings("none", checkpointing, ALL, torch.float32, "cpu"), 2, 512, 512
        )
        assert predicted.peak == pytest.approx(measured, rel=0.1)


def test_the_measured_peak_is_the_most_that_was_held_at_one_time():
    def run():
        first = torch.ones(1000, 1000)
        second = first + 1  # 8 MB
        del first
        return second * 2  # 8 MB

    assert measure_peak(torch.device("cpu"), run) == pytest.approx(8_000_000, abs=1000)


@pytest.mark.parametrize("value", ["0", "-1", "much", "nan", "inf"])
def test_a_bad_limit_is_named(monkeypatch, value):
    monkeypatch.setenv("MEMORY_LIMIT_GIB", value)
    with pytest.raises(InputError, match=f"MEMORY_LIMIT_GIB .*'{value}'"):
        free_bytes(torch.device("cpu"))


def test_the_limit_is_a_smaller_card_than_is_there(monkeypatch):
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "0.5")
    assert free_bytes(torch.device("cpu")) == GIB // 2


def test_on_cuda_the_context_comes_off_the_limit_and_pytorch_is_held_to_the_rest(monkeypatch):
    held = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * GIB, 80 * GIB))
    monkeypatch.setattr(
        torch.cuda, "set_per_process_memory_fraction", lambda fraction, _: held.append(fraction)
    )
    assert free_bytes(torch.device("cuda", 0)) == 70 * GIB
    assert not held
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "4")
    allowed = 4 * GIB - CONTEXT_BYTES
    assert free_bytes(torch.device("cuda", 0)) == allowed
    assert held == [allowed / (80 * GIB)]


@pytest.fixture
def ready(project):
    base.main()
    clean.main()
    format.main()
    return load_params()


def limit_to(monkeypatch, size):
    monkeypatch.setenv("MEMORY_LIMIT_GIB", str(size / GIB / (1 - SPARE)))


def test_the_most_rows_that_fit_are_taken_and_the_effective_batch_stays(ready, monkeypatch):
    setting, longest = (
        ComputeSettings("nf4", False, ALL, torch.float32, "cpu"),
        LongestLengths(500, 100),
    )
    sizes = measure_sizes(AutoConfig.from_pretrained(BASE_DIR), ALL)
    needs = {rows: predict_training(sizes, setting, rows, 500, 100).peak for rows in (1, 2, 4)}
    for size, expected in ((needs[4] + 10, 4), (needs[4] - 10**6, 2), (needs[1] + 10, 1)):
        limit_to(monkeypatch, size)
        plan = plan_training(BASE_DIR, setting, ready.sft, longest)
        assert plan.per_device_train_batch_size == expected
        assert plan.per_device_train_batch_size * plan.gradient_accumulation_steps == 4
        assert plan.predicted.peak == needs[expected]
    limit_to(monkeypatch, needs[4] + 10)
    assert (
        plan_training(
            BASE_DIR, setting, ready.sft, longest, most_rows=3
        ).per_device_train_batch_size
        == 2
    )
    monkeypatch.setenv("PER_DEVICE_TRAIN_BATCH_SIZE", "1")
    assert plan_training(BASE_DIR, setting, ready.sft, longest).per_device_train_batch_size == 1


def test_activations_are_kept_if_they_fit_the_batch_that_checkpointing_allows(ready, monkeypatch):
    saving = ComputeSettings("nf4", True, ALL, torch.float32, "cpu", optional_checkpointing=True)
    sizes = measure_sizes(AutoConfig.from_pretrained(BASE_DIR), ALL)
    keeping = replace(saving, gradient_checkpointing=False)

    def need(settings, rows):
        return predict_training(sizes, settings, rows, 500, 100).needed

    assert need(saving, 4) < need(keeping, 4)
    assert need(keeping, 2) < need(saving, 4)
    for size, rows, checkpointing in (
        (need(keeping, 4), 4, False),
        (need(keeping, 4) - 10**5, 4, True),
        (need(saving, 4) - 10**5, 2, False),
    ):
        limit_to(monkeypatch, size + 10)
        plan = plan_training(BASE_DIR, saving, ready.sft, LongestLengths(500, 100))
        chosen = (plan.per_device_train_batch_size, plan.gradient_checkpointing)
        assert chosen == (rows, checkpointing)
        assert plan.record()["gradient_checkpointing"] == checkpointing
        settled = replace(saving, optional_checkpointing=False)
        assert plan_training(
            BASE_DIR, settled, ready.sft, LongestLengths(500, 100)
        ).gradient_checkpointing


def test_a_cpu_takes_no_larger_batch_of_a_real_model_than_keeps_it_busy(monkeypatch):
    model_file = load_model_file("smollm2-135m-instruct")
    sizes, longest = load_sizes(model_file, ALL), LongestLengths(74, 10)
    assert sizes.linear + sizes.other == 134_515_008
    cpu = ComputeSettings("nf4", True, ALL, torch.float32, "cpu")
    cuda = replace(cpu, device_type="cuda", dtype=torch.bfloat16)

    def choose(settings, longest=longest, choices=(4, 2, 1)):
        return choose_batch_size(sizes, settings, longest, choices, 24 * GIB)[0]

    assert choose(cpu) == 2  # 2 times 74 tokens times 135 million parameters: 2.0e10
    assert choose(replace(cpu, pairs=True)) == 1
    assert choose(cpu, LongestLengths(500, 100)) == 1
    assert choose(cpu, LongestLengths(500, 100), [4]) == 4  # asked for in the environment
    assert choose(cuda, LongestLengths(500, 100)) == 4


def test_where_one_row_is_too_much_it_says_what_would_fit(ready, monkeypatch):
    setting = ComputeSettings("nf4", True, ALL, torch.bfloat16, "cuda")
    sizes = load_sizes(load_model_file("qwen2.5-1.5b-instruct"), ALL)
    (BASE_DIR / "config.json").write_text(
        AutoConfig.for_model(
            **load_model_file("qwen2.5-1.5b-instruct").config.model_dump(exclude_none=True)
        ).to_json_string()
    )
    limit_to(monkeypatch, predict_training(sizes, setting, 1, 4096, 350).needed - 10**7)
    shorter = [ShorterLength(length, length) for length in lengths_below(4096, 350)]
    with pytest.raises(InputError) as error:
        plan_training(BASE_DIR, setting, ready.sft, LongestLengths(4096, 350, shorter))
    lines = str(error.value).splitlines()
    assert lines[0].startswith(
        "sft: batch size 1 with rows of 4096 tokens needs 2.32 GiB (weights 1.06 GiB, adapter 0.28"
    )
    assert lines[1] == "what would fit:"
    ways = [line.split(":")[0].strip() for line in lines[2:]]
    assert ways == [
        "FSDP=offload in the environment",
        "format.max_length=3968",
        "sft.lora.r=8",
        *("model=llama-3.2-1b-instruct", "model=gemma-3-1b-it", "model=qwen3-0.6b"),
    ]
    assert all("GiB (weights" in line for line in lines[2:])
    limit_to(monkeypatch, 10**6)
    with pytest.raises(InputError, match="No single change makes it fit"):
        plan_training(BASE_DIR, setting, ready.sft, LongestLengths(4096, 350))


def test_a_shorter_length_makes_the_rows_that_format_then_makes(ready):
    """Neither longer, nor one less than a question and its answer take."""
    rows = [
        row
        for split in ("train", "validation")
        for row in read_jsonl(Path(f"data/formatted/{split}.jsonl"))
    ]
    offered = shorter_lengths(rows, ready.format)
    assert len(offered) > 5
    for shorter in offered[:: len(offered) - 1]:
        edit_yaml("params.yaml", format__max_length=shorter.max_length)
        format.main()
        again = [
            row
            for split in ("train", "validation")
            for row in read_jsonl(Path(f"data/formatted/{split}.jsonl"))
        ]
        assert len(again) == len(rows)
        longest = max(row["prompt_tokens"] + row["answer_tokens"] for row in again)
        assert longest <= shorter.longest <= shorter.max_length
    assert max(row["prompt_tokens"] + row["answer_tokens"] for row in rows) > shorter.longest


def test_what_would_fit_is_said_for_as_many_rows_as_were_asked_for(ready, monkeypatch):
    setting = ComputeSettings("nf4", False, ALL, torch.float32, "cpu")
    sizes = measure_sizes(AutoConfig.from_pretrained(BASE_DIR), ALL)
    monkeypatch.setenv("PER_DEVICE_TRAIN_BATCH_SIZE", "4")
    limit_to(monkeypatch, predict_training(sizes, setting, 4, 500, 100).peak - 10**6)
    with pytest.raises(InputError) as error:
        plan_training(
            BASE_DIR, setting, ready.sft, LongestLengths(500, 100, [ShorterLength(512, 448)])
        )
    said, _, *ways = str(error.value).splitlines()
    assert said.startswith("sft: batch size 4 with rows of 500 tokens needs ")
    predicted = dict(way.strip().split(": ", 1) for way in ways)
    for way, rows, length in (
        ("PER_DEVICE_TRAIN_BATCH_SIZE=1 in the environment, or unset", 1, 500),
        ("format.max_length=512", 4, 448),
    ):
        assert predicted[way] == str(predict_training(sizes, setting, rows, length, 100))


def test_so_many_rows_as_were_asked_for_are_not_tried_again_once_they_were_too_much(
    ready, monkeypatch
):
    monkeypatch.setenv("PER_DEVICE_TRAIN_BATCH_SIZE", "4")
    with pytest.raises(
        InputError,
        match="PER_DEVICE_TRAIN_BATCH_SIZE in the environment: so many rows are too much",
    ):
        plan_training(
            BASE_DIR,
            ComputeSettings("nf4", False, ALL, torch.float32, "cpu"),
            ready.sft,
            LongestLengths(500, 100),
            most_rows=3,
        )


def test_a_linear_layer_that_the_model_does_not_have_is_named(ready):
    config = AutoConfig.from_pretrained(BASE_DIR)
    with pytest.raises(
        InputError,
        match=r"sft\.lora\.target_modules: the model has no linear layer 'v_porj', but down_proj, ",
    ):
        measure_sizes(config, Adapter(16, ["q_proj", "v_porj"]))
    longer = measure_sizes(config, Adapter(16, ["self_attn.q_proj"]))
    assert longer.lora == measure_sizes(config, Adapter(16, ["q_proj"])).lora > 0


def test_a_model_without_quantization_is_told_of_it(ready, monkeypatch):
    setting = ComputeSettings("none", True, ALL, torch.bfloat16, "cuda")
    values = load_model_file("qwen2.5-0.5b-instruct").config.model_dump(exclude_none=True)
    config = AutoConfig.for_model(**values)
    (BASE_DIR / "config.json").write_text(config.to_json_string())
    needed = predict_training(measure_sizes(config, ALL), setting, 1, 500, 100).needed
    limit_to(monkeypatch, needed - 10**7)
    with pytest.raises(InputError, match="quantization: nf4 in the model's file"):
        plan_training(BASE_DIR, setting, ready.sft, LongestLengths(500, 100))


def test_layers_that_are_elsewhere_take_no_memory_until_they_are_gathered(ready):
    sizes = measure_sizes(AutoConfig.from_pretrained(BASE_DIR), ALL)
    whole, shared, elsewhere = (
        predict_training(
            sizes,
            ComputeSettings("nf4", True, ALL, torch.bfloat16, "cuda", held, gathered),
            1,
            500,
            100,
        ).weights
        for held, gathered in ((1.0, 0.0), (0.25, 3.0), (0.0, 1.25))
    )
    layer = sizes.linear / sizes.layers / 2  # bytes: 4 bits a weight
    assert whole - shared == pytest.approx(0.75 * sizes.layers * layer - 3 * layer, abs=2)
    assert whole - elsewhere == pytest.approx(sizes.layers * layer - 1.25 * layer, abs=2)


def test_a_head_without_tritons_kernels_and_copies_of_gradients_are_counted(half_billion):
    kernels, plain, averaged = (
        predict_training(half_billion, replace(CUDA, **change), 1, 4096, 350)
        for change in ({}, {"triton": False}, {"ddp": True})
    )
    tile = PLAIN_HEAD_ROWS * HEAD_COLUMNS
    assert plain.head == tile * (2 + 29) + 4096 * half_billion.hidden * 6
    assert kernels.head == 350 * (HEAD_COLUMNS * 2 + half_billion.hidden * 6)
    assert averaged.adapter - kernels.adapter == 4 * half_billion.lora


@pytest.mark.parametrize(("value", "expected"), [(None, [8, 4, 2, 1]), ("2", [2]), ("8", [8])])
def test_rows_at_a_time_divide_the_effective_batch_size(monkeypatch, value, expected):
    if value is not None:
        monkeypatch.setenv("PER_DEVICE_TRAIN_BATCH_SIZE", value)
    assert batch_size_choices(8) == expected
    monkeypatch.setenv("PER_DEVICE_TRAIN_BATCH_SIZE", "3")
    with pytest.raises(
        InputError, match=r"PER_DEVICE_TRAIN_BATCH_SIZE in the environment: 3 does not divide"
    ):
        batch_size_choices(8)
    monkeypatch.setenv("PER_DEVICE_TRAIN_BATCH_SIZE", "")
    assert batch_size_choices(8) == [8, 4, 2, 1]


def test_processes_that_do_not_divide_the_effective_batch_size_are_named(monkeypatch):
    monkeypatch.setattr(planning, "processes", lambda: SimpleNamespace(num_processes=2))
    assert batch_size_choices(8) == [4, 2, 1]
    with pytest.raises(InputError, match=r"2 processes do not divide sft\.effective_batch_size, 3"):
        batch_size_choices(3)


def test_batches_that_are_answered_fit_too(ready, monkeypatch, caplog):
    setting = ComputeSettings("nf4", False, ALL, torch.float32, "cpu")
    assert plan_answering(BASE_DIR, setting, LongestLengths(500, 100)) == 8192
    sizes = measure_sizes(AutoConfig.from_pretrained(BASE_DIR), ALL)
    limit_to(monkeypatch, predict_answering(sizes, setting, 2048 // 500, 400, 100).peak + 10)
    assert plan_answering(BASE_DIR, setting, LongestLengths(500, 100)) == 2048
    limit_to(monkeypatch, 10**6)
    with pytest.raises(InputError, match="answering a prompt of 400 tokens needs"):
        plan_answering(BASE_DIR, setting, LongestLengths(500, 100))
    assert not caplog.records
    monkeypatch.setenv("TOKENS_PER_BATCH", "100")
    assert plan_answering(BASE_DIR, setting, LongestLengths(500, 100)) == 100
    assert caplog.messages == [
        "TOKENS_PER_BATCH in the environment is more than fits; unset it if memory runs out"
    ]


def test_what_would_fit_in_place_of_a_prompt_is_said_with_its_memory(ready, monkeypatch):
    longest = LongestLengths(4096, 350)
    values = load_model_file("qwen2.5-1.5b-instruct").config.model_dump(exclude_none=True)
    config = AutoConfig.for_model(**values)
    (BASE_DIR / "config.json").write_text(config.to_json_string())
    needed = predict_answering(measure_sizes(config, ALL), CUDA, 1, 3746, 350).peak
    limit_to(monkeypatch, needed - 10**7)
    lengths = [LongestLengths(length, 350) for length in (4000, 2000, 1000)]
    ways = [
        offloaded_ways(CUDA, longest),
        [Way(f"a row of {each.length}", CUDA, each) for each in lengths],
        [Way("the same", CUDA, longest)],
    ]
    with pytest.raises(InputError) as error:
        plan_answering(BASE_DIR, CUDA, longest, ways, instead="{} in its place")
    said, head, *lines = str(error.value).splitlines()
    assert said.startswith("answering a prompt of 3746 tokens needs 1.69 GiB (weights 1.06")
    assert head == "what would fit:"
    assert [line.split(":")[0].strip() for line in lines] == [
        "FSDP=offload in the environment",
        "a row of 4000",
        *(f"{name} in its place" for name in ("llama-3.2-1b-instruct", "gemma-3-1b-it")),
        "qwen3-0.6b in its place",
    ]
    limit_to(monkeypatch, 10**6)
    with pytest.raises(InputError, match="Combine a shorter prompt with a smaller model"):
        plan_answering(BASE_DIR, CUDA, longest)


def test_one_prompt_is_not_planned_as_a_batch(ready, monkeypatch, caplog):
    setting = ComputeSettings("nf4", False, ALL, torch.float32, "cpu")
    sizes = measure_sizes(AutoConfig.from_pretrained(BASE_DIR), ALL)
    alone = predict_answering(sizes, setting, 1, 400, 100)
    limit_to(monkeypatch, alone.peak + 10)
    monkeypatch.setenv("TOKENS_PER_BATCH", "4000")
    caplog.set_level("INFO")
    assert plan_answering(BASE_DIR, setting, LongestLengths(500, 100), most_tokens=500) == 500
    (said,) = caplog.messages
    assert said.startswith(f"a batch of 500 tokens needs {alone}; ")


def test_what_is_merged_is_asked_whole_and_on_a_cpu_where_a_card_is_too_small(ready, monkeypatch):
    sizes = measure_sizes(AutoConfig.from_pretrained(BASE_DIR), ALL)
    whole = merged(replace(CUDA, held_share=0.0, gathered_layers=1.25))
    assert (whole.quantization, whole.held_share, whole.adapter.r) == ("none", 1.0, 0)
    needed = predict_answering(replace(sizes, lora=0), whole, 1, 400, 100)
    assert needed.weights == 2 * (sizes.linear + sizes.other)
    assert needed.adapter == 0
    monkeypatch.setattr(planning, "measure_free", lambda _: needed.peak - 1)
    longest = LongestLengths(500, 100)
    way = Way("CUDA_VISIBLE_DEVICES= in the environment", on_cpu(whole), longest)
    on_a_cpu = predict_answering(replace(sizes, lora=0), on_cpu(whole), 1, 400, 100)
    with pytest.raises(InputError, match="\n  CUDA_VISIBLE_DEVICES= in the environment: ") as error:
        plan_answering(BASE_DIR, whole, longest, [[way]])
    assert str(on_a_cpu) in str(error.value)


def test_merging_takes_the_computers_memory_which_a_cards_limit_is_not_for(ready, monkeypatch):
    sizes = measure_sizes(AutoConfig.from_pretrained(BASE_DIR), ALL)
    needed = predict_merging(sizes)
    assert needed.weights == 4 * (sizes.linear + sizes.other)
    limit_to(monkeypatch, needed.peak + 10)
    check_merging(BASE_DIR, ALL)
    limit_to(monkeypatch, needed.peak - 10**5)
    with pytest.raises(InputError) as error:
        check_merging(BASE_DIR, ALL)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("merging the adapter into its base model, in float32 in host memory")
    assert f"needs {needed}; " in lines[0]
    assert lines[1:] == [
        "No smaller model in models/ fits either.",
        "You can still ask the adapter without merging it: python -m commands.ask",
    ]
    assert free_beside(torch.device("cuda", 0)) > GIB // 10
    # of a larger base, the models that would do
    values = load_model_file("qwen2.5-1.5b-instruct").config.model_dump(exclude_none=True)
    (BASE_DIR / "config.json").write_text(AutoConfig.for_model(**values).to_json_string())
    limit_to(monkeypatch, 3 * GIB)
    with pytest.raises(InputError, match=r"what would fit:\n  model=qwen3-0\.6b: 2\.") as error:
        check_merging(BASE_DIR, ALL)
    assert "qwen2.5-1.5b" not in str(error.value)


@pytest.mark.parametrize("value", ["0", "-1", "many", "²"])
def test_a_bad_number_of_tokens_is_named(ready, monkeypatch, value):
    monkeypatch.setenv("TOKENS_PER_BATCH", value)
    with pytest.raises(InputError, match=f"TOKENS_PER_BATCH .*'{value}'"):
        plan_answering(
            BASE_DIR,
            ComputeSettings("nf4", False, ALL, torch.float32, "cpu"),
            LongestLengths(500, 100),
        )


def test_the_table_marks_what_a_card_can_not_hold(project, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["memory", "--lengths", "1024", "4096", "--rows", "1"])
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "3.45")
    Path("models/local/config.json").unlink()
    main()
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split(" | ")[0].strip("| "): line for line in lines if line.startswith("| ")}
    assert "✗" not in cells["qwen2.5-0.5b-instruct"]
    assert [cells[f"qwen2.5-{name}-instruct"].count("✗") for name in ("1.5b", "3b", "7b")] == [
        0,
        1,
        3,
    ]
    assert "unknown until its config.json is downloaded" in cells["local"]
    assert lines[-1] == "Predicted. ✗: more than 95% of the 3.03 GiB that are free for tensors."
    # a card that is not there may be larger than the computer's memory, and one of several
    monkeypatch.setenv("MEMORY_LIMIT_GIB", "4096")
    monkeypatch.setenv("FSDP", "full_shard")
    monkeypatch.setattr(
        "sys.argv", ["memory", "--lengths", "1024", "--rows", "1", "--processes", "4"]
    )
    main()
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == (
        "Predicted with FSDP=full_shard for each of 4 processes. ✗: more than 95% of the 4095.58 "
        "GiB that are free for tensors."
    )
    (shared,) = [line for line in lines if line.startswith("| qwen2.5-7b")]
    assert float(shared.split("|")[3].split()[0]) < 6.44 - 1.5
    monkeypatch.setattr("sys.argv", ["memory"])
    with pytest.raises(
        InputError, match="FSDP=full_shard in the environment needs several processes"
    ):
        main()


@pytest.mark.parametrize("checkpointing", [True, False])
def test_scores_that_are_written_out_take_what_is_predicted(checkpointing):
    """Of Gemma 2, which has plain attention alone: the part that grows with the length's square."""
    config = AutoConfig.for_model(
        "gemma2", vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=8, num_key_value_heads=8, head_dim=8, sliding_window=4096,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    setting = ComputeSettings("none", checkpointing, ALL, torch.float32, "cpu")
    peaks, predicted = [], []
    for length in (512, 1024):
        ids = torch.randint(0, 64, (1, length))
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()  # gradients are there
        peaks.append(
            measure_peak(
                torch.device("cpu"),
                lambda ids=ids: model(input_ids=ids, labels=ids, use_cache=False).loss.backward(),
            )
        )
        sizes = measure_sizes(config, ALL)
        predicted.append(predict_training(sizes, setting, 1, length, 100).attention)
    measured = peaks[1] - 2 * peaks[0]
    assert predicted[1] - 2 * predicted[0] == pytest.approx(measured, rel=0.1)


def test_a_model_file_that_says_another_config_is_refused():
    config = load_model_file("qwen2.5-0.5b-instruct", ROOT / "models").config
    values = config.model_dump(exclude_none=True)
    check_config(config, AutoConfig.for_model(**values), "models/x.yaml")
    other = AutoConfig.for_model(**values | {"hidden_size": 1024})
    with pytest.raises(
        InputError,
        match=r"models/x\.yaml: config\.hidden_size: 896, but the model's config\.json has 1024",
    ):
        check_config(config, other, "models/x.yaml")
