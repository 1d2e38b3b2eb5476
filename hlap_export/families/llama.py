"""Llama 2 and 3.x: pre-norm, no attention biases unless the config asks for them; RoPE scaling is the config's."""

from hlap_export.families.spec import Family

LLAMA = Family(model_type="llama", config_class="LlamaConfig", model_class="LlamaForCausalLM")
