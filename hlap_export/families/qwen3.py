"""Qwen3: Llama with a per-head RMSNorm on queries and keys."""

from hlap_export.families.spec import Family

QWEN3 = Family(model_type="qwen3", config_class="Qwen3Config", model_class="Qwen3ForCausalLM", query_key_norms=True)
