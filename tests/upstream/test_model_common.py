# Copyright 2026 The Moeba Authors. Licensed under the Apache License, Version 2.0.
"""transformers' own model tests, run on Moeba's classes in each of its main shapes.

`control_*` run the same harness on stock classes: should a test fail both here and there, look for the reason
in the harness or in transformers.
"""

import copy
import dataclasses
import os
import unittest

import moeba_variants
import pytest
import torch
import transformers
import upstream_sdist

try:
    upstream_sdist.install(upstream_sdist.fetch())
except upstream_sdist.UpstreamUnavailable as error:
    if upstream_sdist.running_in_ci():
        raise
    pytest.skip(f"transformers' own tests are not available: {error}", allow_module_level=True)

common = upstream_sdist.load("test_modeling_common")
configuration = upstream_sdist.load("test_configuration_common")
training = upstream_sdist.load("test_training_mixin")
tensor_parallel = upstream_sdist.load("test_tensor_parallel_mixin")
expert_parallel = upstream_sdist.load("test_expert_parallel_mixin")
fsdp = upstream_sdist.load("test_fsdp_mixin")
generation = upstream_sdist.load("generation.test_utils")

# Upstream's tests count warnings that are errors in ours.
pytestmark = [
    pytest.mark.upstream,
    pytest.mark.filterwarnings("always:.*past_key_values.*is deprecated:FutureWarning"),
]


def treat_as_in_tree(model_type: str, prefix: str) -> None:
    """Upstream's tests tell heads apart by looking class names up in transformers' tables, which no
    out-of-tree class ever enters, and run multi-process tests for listed model types only. Extend their
    copies of both."""
    for table, suffix in {
        "MODEL_MAPPING_NAMES": "Model",
        "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "ForCausalLM",
        "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "ForSequenceClassification",
        "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "ForTokenClassification",
        "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": "ForQuestionAnswering",
    }.items():
        names = dict(getattr(common, table))
        names.setdefault(model_type, prefix + suffix)
        setattr(common, table, names)
    for module, listed in (
        (tensor_parallel, "TP_DISTRIBUTED_TEST_MODEL_TYPES"),
        (expert_parallel, "EP_DISTRIBUTED_TEST_MODEL_TYPES"),
        (fsdp, "FSDP_DISTRIBUTED_TEST_MODEL_TYPES"),
    ):
        if getattr(module, listed) is not None:
            setattr(module, listed, {*getattr(module, listed), model_type})


def set_epsilons(config) -> None:
    """Upstream's function of this purpose sets an epsilon under every name that any model uses. MoebaConfig
    refuses to load fields that it does not have, so set those which exist."""
    for name in ("rms_norm_eps", "layer_norm_eps", "norm_eps", "layer_norm_epsilon"):
        if hasattr(config, name):
            setattr(config, name, 1.0)


common.set_config_for_less_flaky_test = set_epsilons


@dataclasses.dataclass
class Variant:
    """A configuration to test. `skips` maps a test's name to why it does not apply."""

    name: str
    config_class: type
    model_classes: tuple[type, ...]
    sizes: dict = dataclasses.field(default_factory=dict)
    skips: dict[str, str] = dataclasses.field(default_factory=dict)
    slow: bool = True
    # Whether to run the multi-process tests (about two minutes) too
    distributed: bool = False


class ModelTester:
    """What the mixins ask of a model's tester: a tiny config, inputs for it, and the sizes of its outputs."""

    is_training = True
    batch_size = 13
    seq_length = 7

    def __init__(self, parent: unittest.TestCase, variant: Variant):
        self.parent = parent
        self.variant = variant
        self.kwargs = {**moeba_variants.SIZES, **variant.sizes}
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"):
            setattr(self, name, self.kwargs[name])
        self.causal_lm_class = variant.model_classes[1]

    def get_config(self):
        return self.variant.config_class(**copy.deepcopy(self.kwargs))

    def prepare_config_and_inputs_for_common(self):
        # Ids from 3 on: no special tokens. Row i holds min(i + 1, seq_length) tokens, then padding.
        input_ids = torch.randint(3, self.vocab_size, (self.batch_size, self.seq_length))
        attention_mask = torch.ones_like(input_ids).tril()
        return self.get_config(), {"input_ids": input_ids, "attention_mask": attention_mask}


class VariantTests:
    variant: Variant

    def setUp(self):
        super().setUp()
        transformers.set_seed(0)
        if reason := self.variant.skips.get(self._testMethodName):
            self.skipTest(reason)
        self.model_tester = ModelTester(self, self.variant)

    @property
    def all_model_classes(self):
        return self.variant.model_classes


class CommonTests(
    VariantTests, common.ModelTesterMixin, training.TrainingTesterMixin, generation.GenerationTesterMixin
):
    # TrainingTesterMixin declares an abstract property of this name; setUp fills it
    model_tester = None
    # Upstream spares old models a strict test, telling their age by a copyright line
    test_can_init_all_missing_weights_before_2023 = True

    def test_config(self):
        # Only settings which config.json gives back literally: none that act on nothing in this variant
        written = self.model_tester.get_config().to_diff_dict().keys() - {"rope_parameters", "dtype"}
        kwargs = {name: value for name, value in self.model_tester.kwargs.items() if name in written}
        tester = configuration.ConfigTester(self, config_class=self.variant.config_class, **kwargs)
        tester.run_common_tests()

    def test_torch_export(self):
        """Stands in for the export mixin, which the sdist lacks: the exported program computes the same."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            with self.subTest(model_class.__name__):
                model = model_class(copy.deepcopy(config)).eval()
                if model_class._can_set_experts_implementation():
                    model.set_experts_implementation("batched_mm")  # eager loops over data-dependent sizes
                with torch.no_grad():
                    program = torch.export.export(
                        model,
                        args=(),
                        kwargs={**inputs, "use_cache": False, "return_dict": True},
                        strict=False,
                    )
                    expected, actual = (
                        model(**inputs, use_cache=False),
                        program.module()(**inputs, use_cache=False, return_dict=True),
                    )
                torch.testing.assert_close(actual[0], expected[0], atol=1e-5, rtol=1e-5)

    def test_tp_plan_shards_input_embeddings(self):
        tensor_parallel.TensorParallelTesterMixin.test_tp_plan_shards_input_embeddings(self)

    def test_moe_parallel_plans_shard_experts(self):
        tensor_parallel.TensorParallelTesterMixin.test_moe_parallel_plans_shard_experts(self)


class DistributedTests(
    VariantTests,
    tensor_parallel.TensorParallelTesterMixin,
    expert_parallel.ExpertParallelTesterMixin,
    fsdp.FSDPTesterMixin,
):
    """Several gloo processes on one machine; each test starts fresh interpreters, hence slow."""

    model_tester = None
    # Ranks of the FSDP tests: as many as every machine has cores for
    fsdp_nproc_per_node = 2


LLAMA = (
    transformers.LlamaModel,
    transformers.LlamaForCausalLM,
    transformers.LlamaForSequenceClassification,
    transformers.LlamaForTokenClassification,
    transformers.LlamaForQuestionAnswering,
)
MIXTRAL = (
    transformers.MixtralModel,
    transformers.MixtralForCausalLM,
    transformers.MixtralForSequenceClassification,
    transformers.MixtralForTokenClassification,
    transformers.MixtralForQuestionAnswering,
)

VARIANTS = [
    *(
        Variant(
            f"moeba_{shape}",
            moeba_variants.MoebaConfig,
            moeba_variants.MODEL_CLASSES,
            sizes=sizes,
            skips=moeba_variants.SKIPS.get(shape, {}),
            slow=shape not in moeba_variants.DEFAULT_SHAPES,
            distributed=shape == "qwen_moe",  # has dense and sparse layers
        )
        for shape, sizes in moeba_variants.SHAPES.items()
    ),
]
# Stock classes show that the harness itself is sound: run them after changing it.
if os.environ.get("MOEBA_TESTS_CONTROLS"):
    VARIANTS += [
        Variant("control_llama", transformers.LlamaConfig, LLAMA),
        Variant(
            "control_mixtral",
            transformers.MixtralConfig,
            MIXTRAL,
            sizes={"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16},
        ),
    ]

treat_as_in_tree("moeba", "Moeba")
treat_as_in_tree("llama", "Llama")
treat_as_in_tree("mixtral", "Mixtral")


def _define_test_classes() -> None:
    for variant in VARIANTS:
        unknown = [name for name in variant.skips if not hasattr(CommonTests, name)]
        assert not unknown, f"{variant.name} skips tests which do not exist: {unknown}"
        title = "".join(part.capitalize() for part in variant.name.split("_"))
        kinds = [("", CommonTests, variant.slow)]
        if variant.distributed:
            kinds.append(("Distributed", DistributedTests, True))
        for kind, tests, slow in kinds:
            name = f"Test{title}{kind}"
            # Each process balances the tokens that it has, which is not the balance of one process that has all.
            coefficient = {"router_aux_loss_coef": 0.0} if kind == "Distributed" else {}
            chosen = dataclasses.replace(variant, sizes={**variant.sizes, **coefficient})
            test_class = type(name, (tests, unittest.TestCase), {"variant": chosen, "__module__": __name__})
            globals()[name] = pytest.mark.slow(test_class) if slow else test_class


_define_test_classes()
