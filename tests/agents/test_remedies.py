"""Remedies do what they say, and nothing at all unless asked."""

import pytest
import torch

from supple.agents.adam import Adam
from supple.agents.critics import ScalarCritic
from supple.agents.flashsac import FlashSAC
from supple.agents.flashsac_settings import FlashSACSettings
from supple.agents.flow_settings import FlowSettings
from supple.agents.nets import Trunk, UnitBatchNorm, UnitLinear, norm_deviation
from supple.agents.remedies import (
    RemedySettings,
    dormant_units,
    linear_weights,
    reset_dormant_,
    shrink_and_perturb_,
)
from supple.errors import InputError
from tests.agents.small_agents import (
    assert_same_bits,
    generator,
    small_agent,
    small_settings,
    small_spec,
    snapshot,
    train,
)


def trunk(seed=0, **changes):
    return Trunk(4, 6, 1, generator(seed), members=2, **changes)


def test_weight_decay_shrinks_weights_apart_from_the_gradient():
    weight, gain = torch.ones(3), torch.ones(3)
    adam = Adam([weight, gain], decay=0.5, decayed=[weight])
    adam.begin(0.1, 1)
    adam.step((torch.zeros(3), torch.zeros(3)))
    assert weight.tolist() == pytest.approx([0.95] * 3)
    assert gain.tolist() == [1, 1, 1]


def test_weight_decay_follows_a_rate_that_only_the_device_knows():
    weight = torch.ones(2)
    adam = Adam([weight], decay=0.5, decayed=[weight])
    adam.begin(1.0, 1)
    adam.step((torch.zeros(2),), factor=torch.tensor(0.1))
    assert weight.tolist() == pytest.approx([0.95] * 2)


TRUNK = {f"trunk.{name}.weight" for name in ("input_linear", "block.0.linear1", "block.0.linear2")}
BOUNDED = {f"{name}.weight" for name in ("net.first", "net.hidden", "net.out", "distilled")}
PUBLISHED = {
    f"{net}.{name}"
    for net in ("net", "distilled")
    for name in ("first_EHD", "hidden_LEHH", "out_E1H")
}


@pytest.mark.parametrize(
    ("critic", "decayed"),
    [
        ("categorical", TRUNK | {"head.weight"}),
        ("scalar", TRUNK | {"head.weight"}),
        ("flow", TRUNK | BOUNDED),
        ("flow_official", PUBLISHED),
    ],
)
def test_the_weights_of_linear_maps_decay_and_nothing_else(critic, decayed):
    flow = FlowSettings(width=8, depth=3, readout="distilled")
    remedy = RemedySettings(weight_decay=0.1)
    agent = small_agent(critic=critic, critic_blocks=1, flow=flow, remedy=remedy)
    adam = agent._optimizers["critic"]
    with torch.no_grad():
        for part in adam.params:
            part.fill_(1)
    adam.begin(0.5, 1)
    adam.step(tuple(torch.zeros_like(part) for part in adam.params))
    assert {name for name, part in agent.critic.named_parameters() if (part < 1).any()} == decayed


def test_plain_linear_maps_of_a_critic_of_ones_own_decay_too():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    (decayed,) = linear_weights(network)
    assert decayed is network[0].weight


def test_shrinking_keeps_a_share_of_the_trained_weights():
    own, fresh = trunk(0), trunk(1)
    before = own.input_linear.weight.detach().clone()
    shrink_and_perturb_(own, fresh, 0.75)
    expected = 0.75 * before + 0.25 * fresh.input_linear.weight.detach()
    torch.testing.assert_close(own.input_linear.weight.detach(), expected)


def test_an_agent_shrinks_towards_the_networks_of_an_untrained_one():
    """Rows of an orthogonal weight that has more of them than columns are shorter than 1."""
    remedy = RemedySettings(shrink_every=1, shrink=0.0)
    agent = train(small_agent(remedy=remedy, project_actor=False, project_critic=False), 1)
    for network in (agent.actor, agent.critic):
        assert max(float(each) for each in norm_deviation(network).values()) < 1e-5


def killed(own, unit=3, member=1):
    with torch.no_grad():
        norm = own.block[0].norm1
        norm.scale[member, unit], norm.shift[member, unit] = 0, -1
    return own


def test_a_dead_unit_is_reset_and_the_output_does_not_jump():
    own, fresh = killed(trunk(0)), trunk(1)
    x = torch.randn(64, 4, generator=generator(2))
    before = own(x, train=False)
    adam = Adam(list(own.parameters()))
    for moment in adam.square:
        moment.fill_(1)
    assert [int(each.sum()) for each in dormant_units(own, x, 0.0)] == [1]
    assert reset_dormant_(own, fresh, x, 0.0, adam) == 1
    torch.testing.assert_close(own(x, train=False), before)
    block, new = own.block[0], fresh.block[0]
    assert torch.equal(block.linear1.weight[1, 3], new.linear1.weight[1, 3])
    assert not block.linear2.weight[1, :, 3].any()
    assert block.norm1.scale[1, 3] == 1
    assert not any(each.any() for each in dormant_units(own, x, 0.0))
    place = next(i for i, p in enumerate(adam.params) if p is block.linear1.weight)
    assert not adam.square[place][1, 3].any()
    assert adam.square[place][0].all()


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_other_norms_do_not_let_rows_touch_each_other(norm):
    own = trunk(norm=norm)
    x = torch.randn(16, 4, generator=generator(2))
    whole = own.block[0](own.input_linear(x[:, None].expand(-1, 2, -1)), train=True)
    part = own.block[0](own.input_linear(x[:3, None].expand(-1, 2, -1)), train=True)
    torch.testing.assert_close(whole[:3], part)
    assert isinstance(own.input_norm, UnitBatchNorm)


def test_every_remedy_together_trains_within_the_bounds():
    remedy = RemedySettings(weight_decay=0.1, shrink_every=3, reset_dormant_every=4)
    agent = train(small_agent(remedy=remedy, critic_norm="layer"), 8)
    assert agent.metrics["critic/units_reset"] >= 0
    worst = max(float(each) for each in norm_deviation(agent.critic).values())
    assert worst < 1e-5
    assert agent.metrics["critic/loss"].isfinite()


def test_remedies_that_are_off_change_no_bit():
    plain = train(small_agent(), 3)
    off = train(small_agent(remedy=RemedySettings(dormant_threshold=0.5, shrink=0.1)), 3)
    assert_same_bits(snapshot(plain), snapshot(off))


def test_a_critic_without_blocks_has_no_units_to_reset():
    with pytest.raises(InputError, match="reset-dormant-every works on the blocks of a trunk"):
        FlashSACSettings(critic="flow_official", remedy=RemedySettings(reset_dormant_every=1))
    with pytest.raises(InputError, match=r"blocks, and --agent.critic-blocks 0 leaves none"):
        FlashSACSettings(critic_blocks=0, remedy=RemedySettings(reset_dormant_every=1))
    with pytest.raises(InputError, match=r"--agent.remedy.shrink must be in \[0, 1\), got 1"):
        FlashSACSettings(remedy=RemedySettings(shrink=1.0))


class Plain(ScalarCritic):
    """One linear map: a critic of one's own, without a trunk."""

    def __init__(self, size, *, generator):
        super().__init__(size, generator=generator)
        del self.trunk
        self.head = UnitLinear(size.inputs, 1, generator, members=size.members)

    def heads(self, x_MD, *, train, rows):
        return self.head(x_MD[rows, None].expand(-1, self.size.members, -1)).transpose(0, 1)


class Own(FlashSAC):
    def build_critic(self, size, generator):
        return Plain(size, generator=generator)


def test_a_critic_of_ones_own_without_blocks_is_refused_before_it_trains():
    def agent(**remedy):
        settings = small_settings(remedy=RemedySettings(**remedy))
        return Own(small_spec(), settings, total_env_steps=100)

    assert train(agent(shrink_every=1), 1).metrics["critic/loss"].isfinite()
    with pytest.raises(InputError, match="critic's trunk, and Plain has none: drop the flag"):
        agent(reset_dormant_every=1)
