"""Language models of `fwm_py` as transformers has its own: its programs save, load, train and evaluate them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from fwm_py.checks import shown
from fwm_py.experiments.language.model import make_model
from fwm_py.experiments.language.settings import MODEL_SETTINGS, Settings
from fwm_py.experiments.settings import STD
from fwm_py.transformers.cache import FwmCache, present

__all__ = ["FwmConfig", "FwmForCausalLM"]


@strict
class FwmConfig(PreTrainedConfig):
    """The configuration of a `FwmForCausalLM`.

    Parameters
    ----------
    vocab_size : int
    rule, feature_map, normalize, redraw, conv_size, layers, kv_heads, positions, d_model, heads, d_ff, norm, init, \
dropout
        As of `fwm_py.experiments.language.Settings`, with its defaults.
    use_cache : bool
        Return states in evaluation.
    bos_token_id, eos_token_id, pad_token_id : int, optional

    Raises
    ------
    ValueError
        "<name>: got <value>, expected <what is allowed>", also for an option that there is not.
    """

    model_type = "fwm_py"
    attribute_map: ClassVar[dict[str, str]] = {
        "hidden_size": "d_model",
        "intermediate_size": "d_ff",
        "num_hidden_layers": "layers",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
    }
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocab_size: int = 2048
    rule: str = Settings.rule
    feature_map: str = Settings.feature_map
    normalize: bool = Settings.normalize
    redraw: bool = Settings.redraw
    conv_size: int = Settings.conv_size
    layers: int = Settings.layers
    kv_heads: int | None = Settings.kv_heads
    positions: str = Settings.positions
    d_model: int = Settings.d_model
    heads: int = Settings.heads
    d_ff: int = Settings.d_ff
    norm: str = Settings.norm
    init: str = Settings.init
    dropout: float = Settings.dropout
    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    OTHERS: ClassVar[tuple[str, ...]] = (
        *("auto_map", "attn_implementation", "model_type", "name_or_path", "transformers_version"),
    )

    def __post_init__(self, **others: Any) -> None:
        for name in others:
            if not name.startswith("_") and name not in self.OTHERS:
                raise ValueError(f"{name}: got {shown(others[name])}, expected none: FwmConfig has no such option")
        self.settings()
        super().__post_init__(**others)  # type: ignore[no-untyped-call]

    def settings(self) -> Settings:
        """Those of a run whose model this is, as far as they say what it computes."""
        return Settings(**{name: getattr(self, name) for name in MODEL_SETTINGS})


@dataclass
class FwmOutput(ModelOutput):
    """What a `FwmForCausalLM` returns.

    Attributes
    ----------
    loss : tensor (), optional
        Mean cross entropy of each label but a row's first, given the tokens before it.
    logits : tensor (B, T, vocab_size)
    past_key_values : FwmCache, optional
        The states after the last token.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: FwmCache | None = None


class FwmForCausalLM(PreTrainedModel, GenerationMixin):
    """A `fwm_py.torch.nn.Decoder` that transformers can save, load, train and generate with.

    generate(..) goes on from states of the size of the memories, in beams too, in the place of all keys and values.
    Padding may stand before or behind a row's tokens; it is never read. There are no attention weights and no hidden
    states of layers to return.

    Parameters
    ----------
    config : FwmConfig

    Examples
    --------
    >>> import torch
    >>> from fwm_py.transformers import FwmConfig, FwmForCausalLM
    >>> config = FwmConfig(vocab_size=50, rule="gated_delta", feature_map="none", conv_size=4)
    >>> model = FwmForCausalLM(config).eval()
    >>> tokens = torch.randint(50, (2, 7))
    >>> model(tokens, labels=tokens).logits.shape
    torch.Size([2, 7, 50])
    >>> model.generate(tokens, max_new_tokens=5, do_sample=False).shape
    torch.Size([2, 12])
    """

    config_class = FwmConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True

    def __init__(self, config: FwmConfig) -> None:
        super().__init__(config)
        self.model = make_model(config.settings(), config.vocab_size)
        if not self.model.embed.weight.is_meta:
            modules: Any = self.modules()
            for module in modules:  # a Decoder has drawn its numbers
                module._is_hf_initialized = True
        self.post_init()  # type: ignore[no-untyped-call]

    def _init_weights(self, module: nn.Module) -> None:
        """Numbers that a file does not have, or of tokens that are new."""
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=STD if self.config.init == "normal" else module.embedding_dim**-0.5)
        elif [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            raise ValueError(f"{type(module).__name__}: got a file without all of its numbers, expected a whole model")

    def get_input_embeddings(self) -> nn.Module:
        embed: nn.Module = self.model.embed
        return embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embed = value

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # a call that is given none makes a FwmCache

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: FwmCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **others: Any,
    ) -> FwmOutput | tuple[Any, ...]:
        """Logits of the next tokens.

        Parameters
        ----------
        input_ids : tensor (B, T) of integers
        attention_mask : tensor (B, T) or (B, tokens until now), optional
            0 where there is padding. Its logits mean nothing.
        past_key_values : FwmCache, optional
            What an earlier call returned; it is changed.
        labels : tensor (B, T) of integers, optional
            The tokens themselves, and -100 where none is to be predicted: nor is any behind padding.
        use_cache : bool, optional
            Return states: `config.use_cache` in evaluation, and not in training, if not given.
        logits_to_keep : int or tensor
            Only those of so many last tokens, or of these places; 0: all.
        return_dict : bool, optional
            False: a tuple.
        num_items_in_batch : int or tensor, optional
            Divides the loss in the place of the number of labels.

        Raises
        ------
        TypeError, ValueError
            "<name>: got <value>, expected <what is allowed>".
        """
        for name, value in others.items():
            if value is not None and value is not False and name != "num_items_in_batch":
                raise ValueError(f"{name}: got {shown(value)}, expected none: this model has no such option")
        self._check(input_ids, past_key_values)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        mask = present(attention_mask, input_ids, past_key_values.columns if past_key_values else 0)
        cache = FwmCache() if past_key_values is None else past_key_values
        if past_key_values is None and not use_cache and (mask is None or bool(mask[:, 0].all())):
            hidden, _ = self.model.hidden(input_ids)  # padding behind a row's tokens changes nothing
        else:
            hidden = cache.hidden(self.model, input_ids, mask)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.model.logits(hidden[:, kept])
        loss = None
        if labels is not None:
            if mask is not None:  # a row's first token follows nothing
                labels = labels.masked_fill(~mask.roll(1, 1), -100)
            options = {"num_items_in_batch": others.get("num_items_in_batch")}
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **options)
        output = FwmOutput(loss, logits, cache if use_cache else None)
        given = self.config.return_dict if return_dict is None else return_dict
        return output if given else output.to_tuple()

    def _check(self, input_ids: Any, past_key_values: Any) -> None:
        if not isinstance(input_ids, Tensor):
            raise TypeError(f"input_ids: got {shown(input_ids)}, expected a tensor")
        if input_ids.dim() != 2 or input_ids.is_floating_point():
            what = f"{input_ids.dtype} of shape {tuple(input_ids.shape)}"
            raise ValueError(f"input_ids: got {what}, expected (B, T) of integers")
        if input_ids.numel() and not 0 <= int(input_ids.min()) <= int(input_ids.max()) < self.config.vocab_size:
            found = f"tokens from {int(input_ids.min())} to {int(input_ids.max())}"
            raise ValueError(f"input_ids: got {found}, expected 0 to {self.config.vocab_size - 1}")
        if past_key_values is not None and not isinstance(past_key_values, FwmCache):
            raise TypeError(f"past_key_values: got {shown(past_key_values)}, expected a FwmCache")


AutoConfig.register(FwmConfig.model_type, FwmConfig)
AutoModelForCausalLM.register(FwmConfig, FwmForCausalLM)
