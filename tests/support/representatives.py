"""What `make test` runs of each cross product: the cases that represent a mechanism.

`make cases` runs the other cases, and the tests that are marked `full` where they stand.
"""

from __future__ import annotations

import re

import pytest

# The tests whose cases are many of one mechanism, and a pattern of the cases that stay.
STAY = {
  "api/test_analyse.py::test_a_policy_is_run_on_its_prompts": "ppo",
  "api/test_tasks.py::test_classes_are_learnt": "bert",
  "certify/test_certify.py::test_exports_equal_ours": "gpt2|llama3",
  "compose/test_mixed.py::test_what_shares_a_program_differs_along_padded_axes_alone":
    "^(adalora|adapter|lora|prefix|reft|vera)$",
  "data/encode/test_chat_masks.py::test_what_is_trained": "spaces",
  "data/test_confined.py::test_what_a_row_s_rendering_may_take": "a' ",
  "evaluation/test_generate.py::test_frequencies_follow_the_softmax": "None-0.7",
  "evaluation/test_generate.py::test_greedy_answers_equal_teacher_forcing": "t5",
  "evaluation/test_generate.py::test_greedy_equals_teacher_forcing": "prompts|stack",
  "evaluation/test_generate.py::test_grouped_equals_solo": "prefix",
  "formats/test_adapterhub_read.py::test_a_round_trip_changes_no_bit": "section[139]$",
  "formats/test_heads.py::test_head_and_method_load_in_peft": "bert-mlm-classify-section0|llama",
  "formats/test_heads.py::test_the_card_loads_the_head_with_its_labels": "bert-section0",
  "formats/test_merged.py::test_a_delta_on_the_lookup_alone_unties_the_head": "llama3",
  "formats/test_peft_read.py::test_what_peft_wrote":
    "ranks|^(DoRA|VeRA|LoKr|prefix|norms)$|fused LoRA",
  "formats/test_peft_write.py::test_round_trip": "llama-None-(ranks|prefix)|bert|bart",
  "formats/test_peft_write.py::test_the_files_hold_what_peft_itself_would_save":
    "^(LoRA|DoRA|VeRA|prefix|norms)$",
  "models/test_decoder.py::test_decoding_equals_teacher_forcing": "llama-(lora|prefix)$",
  "models/test_decoder.py::test_remat_and_unroll_change_nothing": "llama-fields0",
  "models/test_decoder.py::test_scanned_equals_a_loop_over_layers": "llama-lora$|gpt2-stack",
  "models/test_encoders.py::test_adapters_around_a_norm": "houlsby",
  "models/test_encoders.py::test_states_equal_pytorch": "^bert$",
  "models/test_families.py::test_biases_are_those_that_transformers_has": "mistral|qwen2",
  "models/test_families.py::test_decoding_equals_teacher_forcing": "gemma3",
  "models/test_fused.py::test_bf16_is_as_near_as_plain": "gemma3_text",
  "models/test_fused.py::test_fused_equals_plain":
    "^rsLoRA.*-(qwen2|t5)$|^prefix-(gemma2|mistral|bart)$|^NF4.*-llama$",
  "models/test_heads.py::test_scores_equal_pytorch_and_are_saved_for_it": "^bert|llama-classify",
  "models/test_parity.py::test_bf16_files": "gqa",
  "models/test_parity.py::test_logits_equal_pytorch":
    "^(tied|rope-llama3|gemma3_text|gpt_neox|gpt2)$",
  "models/test_quantize.py::test_it_computes_what_the_dequantised_weights_do": "llama-nf4",
  "models/test_rope.py::test_a_row_goes_by_its_own_length": "longrope",
  "models/test_rope.py::test_decoding_equals_teacher_forcing": "longrope-prefix",
  "models/test_rope.py::test_every_family_reads_them": "gemma2|gpt_neox",
  "models/test_rope.py::test_logits_equal_pytorch": "yarn|longrope",
  "models/test_seq2seq.py::test_bf16_stays_within_a_band": "t5",
  "models/test_seq2seq.py::test_decoding_equals_teacher_forcing": "t5",
  "models/test_seq2seq.py::test_logits_equal_pytorch": "t5-v1.1",
  "models/test_seq2seq.py::test_saved_folders_load_in_pytorch": "^(t5-v1.1|bart-scaled)$",
  "models/test_ties.py::test_scores_of_masked_models_are_copies": "^(bert|modernbert)$",
  "objectives/test_policy.py::test_a_reward_model_rewards_as_it_judges_pairs": "False",
  "peft/methods/test_adalora.py::test_allocates_as_peft_does": "3",
  "peft/methods/test_adapters.py::test_compacter_is_a_sum_of_kronecker_products": "True-houlsby",
  "peft/methods/test_ia3.py::test_encoder_decoders_scale_cross_attention_too": "bart",
  "peft/methods/test_loha_lokr.py::test_lokr_equals_peft": "both",
  "peft/methods/test_loha_lokr.py::test_merge_equals_intercept": "section1",
  "peft/methods/test_lora.py::test_as_peft": "^dora$",
  "peft/methods/test_prefix.py::test_layers_of_different_lengths": "5",
  "peft/methods/test_prefix.py::test_the_mlp_makes_the_prefix_of_each_attention": "t5",
  "peft/methods/test_prefix.py::test_the_network_of_a_prefix_starts_small": "bart",
  "peft/methods/test_prompt.py::test_decoders_equal_peft": "llama|gemma",
  "peft/methods/test_prompt.py::test_encoder_decoders_equal_peft": "t5",
  "peft/methods/test_prompt.py::test_encoders_equal_peft": "roberta",
  "peft/methods/test_prompt.py::test_p_tuning_equals_peft": "mlp",
  "peft/methods/test_subsets.py::test_exactly_these_leaves_move": "gpt2-norms",
  "peft/methods/test_subsets.py::test_norms_are_the_sites_of_that_kind": "olmo2|t5|modernbert",
  "peft/test_methods.py::test_every_trained_leaf_has_a_gradient": "llama-lora|stack",
  "peft/test_methods.py::test_lora_is_w_plus_scaled_ba": "options1",
  "peft/test_methods.py::test_untouched_at_the_start": "parallel",
  "peft/test_shapes.py::test_methods_have_the_shapes_they_state": "llama",
  "peft/test_unions.py::test_cached_decoding_equals_teacher_forcing": "unipelt-llama",
  "preflight/test_checks.py::test_other_devices_take_as_many_trials_as_fit": "'data': 1}-2",
  "runs/test_group.py::test_so_they_do_when_some_leave_and_others_take_their_places": "fsdp",
  "runs/test_resume.py::test_a_checkpoint_of_another_config_is_refused": "changes0",
  "sweeps/test_groups.py::test_every_trial_of_a_group_equals_its_solo_run": "numbers|prompt",
  "sweeps/test_groups.py::test_so_it_does_for_every_number_of_a_loss": "reward",
  "test_sharding.py::test_a_layout_equals_a_single_device": "fsdp_tensor",
  "test_sharding.py::test_devices_share_trials_and_exchange_what_they_do_for_one": "'trial': 4",
  "training/test_loop.py::test_a_stopped_trial_stays_as_it_is": "2",
  "training/test_packing.py::test_a_segment_sees_itself_and_nothing_else": "llama",
  "training/test_packing.py::test_packed_losses_equal_unpacked_ones": "llama",
  "training/test_turns.py::test_a_killed_group_goes_on_to_the_same_bits": "^1-",
  "training/test_turns.py::test_trials_that_take_turns_equal_those_that_do_not": "1",
}  # fmt: skip
DECODER = "llama"  # of the tests that go through every tiny decoder


def mark(items: list, whole: bool) -> None:
  """Marks every other case as `full`.

  Args:
    whole: whether all tests were collected: then each pattern must leave some case.
  """
  stay = {name: 0 for name in STAY}
  for item in items:
    name, _, case = item.nodeid.removeprefix("tests/").partition("[")
    case = case.removesuffix("]")
    stays = re.search(STAY.get(name, ""), case) is not None
    if "pretrained" in item.fixturenames and hasattr(item, "callspec"):
      stays &= item.callspec.params.get("pretrained", DECODER) == DECODER
    if not stays:
      item.add_marker(pytest.mark.full)
    if name in STAY:
      stay[name] += stays
  if whole and (lost := [name for name, count in stay.items() if not count]):
    raise pytest.UsageError(f"representatives.STAY names tests or cases that are gone: {lost}")
