"""Mistral: Llama without biases, with a sliding window in v0.1."""

from hlap_export.families.spec import Biases, Family

MISTRAL = Family(
    model_type="mistral",
    config_class="MistralConfig",
    model_class="MistralForCausalLM",
    fixed_biases=Biases(qkv=False, output=False),
)
