"""Gemma-2: RMSNorms with gain 1 + w before and after each block, soft-capping, alternating local and global layers."""

from hlap_export.families.spec import AlphaTarget, Family

GEMMA2 = Family(
    model_type="gemma2",
    config_class="Gemma2Config",
    model_class="Gemma2ForCausalLM",
    alpha_target=AlphaTarget.POST_ATTENTION_NORM,
)
