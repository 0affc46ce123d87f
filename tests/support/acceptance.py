"""The acceptance lines of `make verify`, and the tests that stand for each."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TRAPS = re.findall(r"tests/\w+/test_\w+\.py::test_\w+", (ROOT / "docs/traps.md").read_text())
MAIN = "tests/cli/test_main.py"
ACCEPTANCE: dict[str, tuple[str, ...]] = {
    "1 parity of the network": ("tests/model/test_parity.py", "tests/model/test_window.py"),
    "2 parity of whole generations": (
        "tests/diffusion/test_parity.py",
        "tests/diffusion/test_parity_nano.py",
    ),
    "3 traps, see docs/traps.md": tuple(TRAPS),
    "4 same seed, same tokens": ("tests/engine/test_same_tokens.py",),
    "5 sizes, names and files of 26B": (
        f"{MAIN}::test_info_of_the_released_sizes",
        "tests/weights/test_names.py",
        "tests/weights/test_full_size.py",
    ),
    "6 vocabulary of Gemma 4": (
        "tests/text/test_tokenizer.py::test_published_vectors",
        "tests/text/test_tokenizer.py::test_round_trip",
        "tests/text/test_tokenizer.py::test_the_two_exceptions",
    ),
    "7 one clear error": (
        f"{MAIN}::test_broken_checkpoint",
        f"{MAIN}::test_wrong_use",
        f"{MAIN}::test_no_abbreviations",
        "tests/weights/test_files.py",
        "tests/weights/test_load.py",
        "tests/test_llm.py::test_bad_prompts",
        "tests/test_llm.py::test_bad_messages",
        "tests/test_llm.py::test_a_prompt_longer_than_the_context",
    ),
    "8 what nano can do": ("tests/evaluate/test_scores.py",),
    "fast paths equal the reference": (
        "tests/kernels/test_head_tiles.py",
        "tests/kernels/test_controls.py",
        "tests/kernels/test_experts.py",
        "tests/kernels/test_attention.py",
    ),
    "Triton kernels in the interpreter": ("tests/kernels/test_in_the_interpreter.py",),
    "memory of a run as predicted": ("tests/cli/test_info_memory.py",),
    "engine 1 random traffic, same tokens": (
        "tests/engine/test_traffic.py::test_random_arrivals",
        "tests/engine/test_traffic.py::test_random_lives_on_a_tiny_model",
        "tests/engine/test_traffic.py::test_preemption_resumes_the_canvas",
    ),
    "engine 2 the scheduler, simulated": (
        "tests/engine/test_scheduler.py",
        "tests/engine/test_pages.py",
        "tests/engine/test_traffic.py::test_cached_prompts_of_others_are_encoded_again",
    ),
    "engine 3 and 6 throughput, newcomers, cached prompts": (
        "tests/bench/test_offline.py",
        "tests/engine/test_traffic.py::test_a_cached_prompt_is_not_encoded_again",
    ),
    "engine 4 faults at every stage": ("tests/engine/test_faults.py",),
    "canvas 1 pinned text and edits, byte for byte": (
        "tests/compose/test_decide.py",
        "tests/compose/test_edit.py",
        "tests/compose/test_fill.py",
        "tests/compose/test_lengths.py",
        "tests/compose/test_on_nano.py",
        "tests/engine/test_canvas_control.py",
    ),
    "canvas 2 structured output on random weights": (
        "tests/engine/test_structured.py",
        "tests/constrain/test_grammar.py",
        "tests/constrain/test_completion.py",
        "tests/constrain/test_tool_calls.py",
        "tests/constrain/test_schema_features.py",
        "tests/diffusion/test_constrained.py",
    ),
    "canvas 2 a search for an end holds up nobody else": (
        "tests/engine/test_searches.py",
        "tests/engine/test_structured.py::test_the_budget_of_a_search_changes_no_token",
        "tests/engine/test_structured.py::test_longest_step_of_a_neighbour",
    ),
    "canvas 3 and 5 what nano gains, decisions": ("tests/evaluate/test_canvas.py",),
    "canvas 6 contradictions before any step": (
        "tests/engine/test_canvas_control.py::test_refused_before_any_step",
        "tests/constrain/test_schema_proofs.py",
    ),
    "server 1 real clients": (
        "tests/clients/test_openai.py",
        "tests/clients/test_others.py",
    ),
    "server 2 equal to llm.chat": (
        "tests/server/test_chat.py::test_answers_equal_those_of_chat",
        "tests/server/test_chat.py::test_answers_are_the_same_under_load",
    ),
    "server 3 fuzz, hang-ups": (
        "tests/server/test_fuzz.py",
        "tests/server/test_leaving.py",
        "tests/server/test_soak.py::test_a_hundred_connections_are_dropped",
    ),
    "server 4 soak": ("tests/server/test_soak.py::test_soak",),
    "server 5 shutdown": (
        "tests/server/test_serve.py::test_start_answer_and_stop",
        "tests/server/test_serve.py::test_stop_under_load",
        "tests/server/test_serve.py::test_health_after_loading",
    ),
    "server 6 every field": (
        "tests/server/test_fields.py",
        "tests/server/test_canvas_route.py",
        "tests/server/test_completions.py",
        "tests/server/test_decisions.py",
        "tests/server/test_edit.py",
        "tests/server/test_fim.py",
        "tests/server/test_messages.py",
    ),
    "server 7 refusals": (
        "tests/server/test_errors.py",
        "tests/server/test_refusals.py",
        "tests/server/test_every_route.py",
    ),
    "server 8 docs/serving.md snippets": (
        "tests/test_docs.py::test_shell_of_the_serving_page_runs",
        "tests/test_docs.py::test_python_of_the_serving_page_runs",
        "tests/test_docs.py::test_other_clients_of_the_serving_page",
        "tests/test_docs.py::test_serving_page_has_every_option_with_its_default",
        "tests/test_docs.py::test_serving_page_has_every_status",
        "tests/test_docs.py::test_serving_page_names_metrics_that_exist",
        "tests/test_docs.py::test_serving_page_has_the_fields_of_the_schemas",
    ),
    "one batch 1 kernels, objects, waits, tokens": (
        "tests/model/test_paged.py",
        "tests/engine/test_paged.py",
        "tests/kernels/test_attention_paged.py",
    ),
    "one batch 2 the reference path": (
        "tests/golden/test_golden.py",
        "tests/engine/test_faults.py",
    ),
    "one batch 3 pages by content": ("tests/engine/test_pages.py",),
    "one batch 4 kernels for six GPU targets": (
        "tests/kernels/test_gpu_compiles.py",
        "tests/kernels/test_gpu_limits.py",
        "tests/kernels/test_in_the_interpreter.py",
        "tests/bench/test_gpu.py",
    ),
    "one batch 6 streams of plans": (
        "tests/compose/test_run.py",
        "tests/server/test_plan_streams.py",
    ),
    "faults: 2,000 hostile checkpoints, one loader process with limits": (
        "tests/weights/test_hostile_checkpoints.py",
        "tests/weights/test_strange_files.py",
    ),
    "faults: files of users": (
        "tests/files/test_write.py",
        "tests/cli/test_edited_files.py",
    ),
    "values across the border": (
        "tests/test_values.py",
        "tests/server/test_event_loop.py",
    ),
    "faults: keys share the engine": ("tests/engine/test_fairness.py", "tests/server/test_keys.py"),
    "faults: keys keep their prompts": ("tests/engine/test_pages.py", "tests/server/test_keys.py"),
    "faults: hostile bodies": ("tests/server/test_mutated_bodies.py",),
    "weight files 3 real weights of other models": ("tests/weights/test_witnesses.py",),
    "weight files 4 a sparse NVFP4 set, plans for 18 and 12 GB": (
        "tests/weights/test_full_size.py::test_plans_and_maps_18_gb_of_nvfp4",
        "tests/weights/test_budget.py",
        "tests/quant/test_offload.py",
        "tests/cli/test_memory.py",
    ),
    "better answers 1 both released templates": (
        "tests/text/test_chat_template.py",
        "tests/text/test_turn.py",
        "tests/compose/test_thought.py",
        "tests/evaluate/test_templates.py",
    ),
    "engine 5 soak": ("tests/engine/test_traffic.py::test_soak", "tests/engine/test_worker.py"),
}
"""Acceptance line -> its tests: files, or single tests. Line 9 is `IN_A_CLONE`."""
