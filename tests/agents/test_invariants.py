"""The bounds of norm control (I1-I14), on fresh agents and after 200 updates on random data."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from supple.agents.actor import squashed_sample
from supple.agents.nets import (
    ResidualBlock,
    UnitBatchNorm,
    UnitLinear,
    UnitRMSNorm,
    norm_deviation,
    project_,
)
from tests.agents.small_agents import (
    ACTIONS,
    ROWS,
    captured,
    generator,
    instances,
    random_batch,
    random_noise,
    small_agent,
    spy_on_steps,
    train,
)

G_MAX = 5.0


def unit_rows(network):
    return torch.cat(
        [layer.weight.detach().norm(dim=-1).flatten() for layer in instances(network, UnitLinear)]
    )


def trained(critic, updates):
    """An agent and what each of its updates did to norms and rows."""
    agent = small_agent(critic=critic)
    seen = SimpleNamespace(agent=agent, deviation=[], target_rows=[], turned=[])
    weights = [layer for name in ("actor", "critic") for layer in linears(agent, name)]
    before = [layer.weight.detach().clone() for layer in weights]

    def look():
        found = [norm_deviation(network) for network in (agent.actor, agent.critic)]
        seen.deviation.append({kind: max(f[kind].item() for f in found) for kind in found[0]})
        seen.target_rows.append(unit_rows(agent.target_critic))
        for at, layer in enumerate(weights):
            # |new - old| is the chord; acos of a float32 cosine near 1 would be noise.
            chord = (layer.weight.detach() - before[at]).norm(dim=-1).max().item()
            bound = agent.settings.lr_peak * math.sqrt(layer.weight.shape[-1])
            seen.turned.append(2 * math.asin(chord / 2) / bound)
            before[at] = layer.weight.detach().clone()

    look()
    return train(agent, updates, after_each=look) and seen


def linears(agent, name):
    return instances(getattr(agent, name), UnitLinear)


CASES = [(critic, updates) for critic in ("categorical", "scalar") for updates in (0, 200)]


IDS = [f"{critic}-after-{updates}" for critic, updates in CASES]


@pytest.fixture(scope="module", params=CASES, ids=IDS)
def history(request):
    return trained(*request.param)


@pytest.fixture
def agent(history):
    """A copy that a test may push around."""
    return copy.deepcopy(history.agent)


@pytest.fixture
def batch(agent):
    return random_batch(agent, generator(11))


@pytest.fixture
def x(batch):
    """The critic's 2B input rows."""
    actions = torch.cat((batch.action_BA, batch.action_BA.flip(0)))
    return torch.cat((batch.critic_obs_2BD, actions), dim=-1)


categorical_only = pytest.mark.parametrize("history", CASES[:2], ids=IDS[:2], indirect=True)


def test_i1_every_row_has_norm_one_after_each_update(history):
    for name in ("actor", "critic"):
        assert (unit_rows(getattr(history.agent, name)) - 1).abs().max() <= 1e-5
    assert max(found["row"] for found in history.deviation) <= 1e-5


def test_i2_every_batch_norm_pair_has_norm_sqrt_d_after_each_update(history):
    for name in ("actor", "critic"):
        for norm in instances(getattr(history.agent, name), UnitBatchNorm):
            for pair in torch.cat((norm.scale, norm.shift), dim=-1).detach():  # each member's
                assert abs(pair.norm() / math.sqrt(norm.scale.shape[-1]) - 1) <= 1e-5
    assert max(found["batch_norm"] for found in history.deviation) <= 1e-5


def test_i3_every_rms_gain_has_norm_sqrt_d_after_each_update(history):
    for name in ("actor", "critic"):
        for norm in instances(getattr(history.agent, name), UnitRMSNorm):
            for gain in norm.scale.detach():  # each member's
                assert abs(gain.norm() / math.sqrt(len(gain)) - 1) <= 1e-5
    assert max(found["rms_norm"] for found in history.deviation) <= 1e-5


def test_i4_target_rows_never_exceed_norm_one(history):
    for rows in history.target_rows:
        assert rows.max() <= 1 + 1e-5
        assert rows.min() > 0.9


def test_i5_batch_norm_output_has_mean_squared_norm_d(agent, batch, x):
    equal = 0
    for network, rows in ((agent.actor, batch.actor_obs_2BD), (agent.critic, x)):
        seen = captured(network, UnitBatchNorm, lambda n=network, r=rows: n(r, train=True))
        assert len(seen) == len(instances(network, UnitBatchNorm))
        for norm, inputs, output in seen:
            width = norm.scale.shape[-1]
            square = output.square().sum(dim=-1).mean(dim=0)  # per member
            assert (square <= width * (1 + 1e-4)).all()
            alive = (inputs.var(dim=0).amin(dim=-1) > 0.2).expand(len(square))
            equal += int(alive.sum())
            assert (square[alive] >= width * (1 - 1e-4)).all()
    assert equal >= 4


@pytest.mark.parametrize("train_mode", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("scale", [1.0, 1e6, 1e-6])
def test_i6_each_row_entering_a_head_is_bounded(agent, batch, x, scale, train_mode):
    for network, rows in ((agent.actor, batch.actor_obs_2BD), (agent.critic, x)):

        def call(network=network, rows=rows):
            network(rows * scale, train=train_mode)

        seen = captured(network, UnitRMSNorm, call)
        assert seen
        for norm, inputs, output in seen:
            before_gain = (output / norm.scale).norm(dim=-1)
            root = math.sqrt(norm.scale.shape[-1])
            assert before_gain.max() <= root * (1 + 1e-4)
            large = inputs.square().mean(dim=-1) > 0.1
            assert (before_gain[large] >= root * (1 - 1e-4)).all()


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_i7_head_outputs_stay_within_the_feature_norm(agent, batch, x, scale):
    for network, rows in ((agent.actor, batch.actor_obs_2BD), (agent.critic, x)):
        heads = [head for head in instances(network, UnitLinear) if head.bias is not None]

        def call(network=network, rows=rows):
            network(rows * scale, train=False)

        seen = [call for call in captured(network, UnitLinear, call) if call[0] in heads]
        assert len(seen) == (2 if network is agent.actor else 1)
        for head, features, output in seen:
            bound = features.norm(dim=-1, keepdim=True) * (1 + 1e-4)
            assert ((output - head.bias).abs() <= bound).all()


@categorical_only
@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_i8_values_stay_inside_the_support(agent, x, scale):
    prediction = agent.critic(x * scale, train=False)
    probability_sum = prediction.exp().sum(dim=-1)
    torch.testing.assert_close(probability_sum, torch.ones(2, 2 * ROWS), atol=1e-5, rtol=0)
    assert agent.critic.value(prediction).abs().max() <= G_MAX + 1e-5


def test_i9_target_is_a_distribution_with_the_bellman_mean(agent, x):
    random = generator(12)
    with torch.no_grad():
        prediction = agent.target_critic(x, train=True)[:, ROWS:]
        value = agent.critic.value(prediction)
    terminal = torch.arange(ROWS) % 2 == 0
    discount = torch.where(terminal, 0.0, 0.9)
    reward = torch.where(terminal, 3.0, 0.1) * torch.randn(ROWS, generator=random)
    reward[0], reward[2] = 7.0, -70.0
    entropy = 0.1 * torch.randn(ROWS, generator=random)
    target, clipped = agent.critic.target(prediction, reward, discount, entropy)
    bellman = reward + discount * (value.min(dim=0).values - entropy)
    if agent.settings.critic == "scalar":
        torch.testing.assert_close(target, bellman, atol=1e-5, rtol=1e-5)
        assert clipped == 0
        return
    assert (target >= 0).all()
    torch.testing.assert_close(target.sum(dim=1), torch.ones(ROWS), atol=1e-5, rtol=0)
    mean = target @ agent.critic.atoms
    unclipped = reward.abs() + discount * (G_MAX + entropy.abs()) <= G_MAX
    assert (unclipped & ~terminal).sum() >= 10
    torch.testing.assert_close(mean[unclipped], bellman[unclipped], atol=1e-4, rtol=0)
    torch.testing.assert_close(
        mean[terminal], reward[terminal].clamp(-G_MAX, G_MAX), atol=1e-4, rtol=0
    )


@categorical_only
@pytest.mark.parametrize("reward_scale", [1.0, 1e6])
def test_i10_gradients_are_bounded_for_any_reward(agent, batch, reward_scale):
    calls = []
    original = agent.critic.loss

    def loss(prediction, target, _):
        logits = prediction.detach().clone().requires_grad_()
        original(torch.log_softmax(logits, dim=-1), target).backward()
        calls.append(logits.grad * prediction.shape[0] * prediction.shape[1])
        return original(prediction, target)

    agent.critic.loss = loss
    gradients = {}
    spy_on_steps(agent, lambda name, found: gradients.update({name: found}))
    features = captured(
        agent.critic,
        UnitRMSNorm,
        lambda: agent.learn(
            batch._replace(reward_B=reward_scale * batch.reward_B), *random_noise(generator(13))
        ),
    )
    (per_sample,) = calls
    assert per_sample.norm(dim=-1).max() <= math.sqrt(2) + 1e-5
    members = agent.critic.size.members
    by_name = dict(zip(dict(agent.critic.named_parameters()), gradients["critic"], strict=True))
    # The last features are those of the prediction; their first half carries loss.
    longest = features[-1][2][:ROWS].norm(dim=-1).amax(dim=0)
    bound = math.sqrt(2) / members
    for at in range(members):
        assert 0 < by_name["head.weight"][at].norm() <= bound * longest[at] + 1e-5
        assert 0 < by_name["head.bias"][at].norm() <= bound + 1e-5


def test_i11_block_gradients_are_orthogonal_to_their_rows(agent, batch, x):
    mean, log_std = agent.actor(batch.actor_obs_2BD, train=True)
    prediction = agent.critic(x, train=True)
    outputs = (mean.square().sum() + log_std.square().sum(), prediction.square().mean())
    for network, loss in zip((agent.actor, agent.critic), outputs, strict=True):
        layers = [
            layer
            for block in instances(network, ResidualBlock)
            for layer in (block.linear1, block.linear2)
        ]
        gradients = torch.autograd.grad(loss, [layer.weight for layer in layers])
        for layer, gradient in zip(layers, gradients, strict=True):
            size = gradient.norm(dim=-1)  # per member and row
            alive = size > 1e-4 * size.amax(dim=-1, keepdim=True)
            cosine = (gradient * layer.weight).sum(dim=-1)[alive] / size[alive]
            assert (alive.sum(dim=-1) > alive.shape[-1] / 2).all()
            assert cosine.abs().max() <= 1e-3


def test_i11_doubling_a_block_row_changes_no_output(agent, batch, x):
    random = generator(14)
    for network, rows in ((agent.actor, batch.actor_obs_2BD), (agent.critic, x)):
        before = torch.stack([*network(rows, train=True)])
        with torch.no_grad():
            for block in instances(network, ResidualBlock):
                for layer in (block.linear1, block.linear2):
                    for weight in layer.weight:  # each member's
                        weight[torch.randint(len(weight), (), generator=random)] *= 2
        after = torch.stack([*network(rows, train=True)])
        assert (after - before).abs().max() <= 1e-3


def test_i12_no_row_turns_faster_than_the_learning_rate_allows(history):
    assert max(history.turned) <= 3.2
    if len(history.deviation) > 1:
        assert max(history.turned) > 0.3  # the rows do turn


def test_i14_actions_and_log_probabilities_are_finite(agent, batch):
    for scale in (1.0, 1e6):
        mean, log_std = agent.actor(batch.actor_obs_2BD * scale, train=False)
        assert log_std.min() >= -10
        assert log_std.max() <= 2
        noise, _ = random_noise(generator(15), rows=2 * ROWS)
        action, log_prob = squashed_sample(mean, log_std, noise)
        assert action.abs().max() <= 1
        assert log_prob.isfinite().all()
    for before_tanh in (-50.0, 50.0):
        mean = torch.full((1, ACTIONS), before_tanh, requires_grad=True)
        action, log_prob = squashed_sample(
            mean, torch.full((1, ACTIONS), -10.0), torch.zeros(1, ACTIONS)
        )
        assert action.abs().max() <= 1
        assert log_prob.isfinite().all()
        (gradient,) = torch.autograd.grad(log_prob.sum(), mean)
        assert gradient.isfinite().all()


def test_bounds_hold_under_half_precision_casting(agent, batch, x):
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        features = captured(agent.critic, UnitRMSNorm, lambda: agent.critic(x, train=True))
        prediction = agent.critic(x, train=True)
        mean, log_std = agent.actor(batch.actor_obs_2BD, train=True)
    assert prediction.dtype == mean.dtype == log_std.dtype == torch.float32
    for norm, _, output in features:
        before_gain = (output.float() / norm.scale).norm(dim=-1)
        assert before_gain.max() <= math.sqrt(norm.scale.shape[-1]) * (1 + 2**-7)
    if agent.settings.critic == "categorical":
        total = prediction.exp().sum(dim=-1)
        torch.testing.assert_close(total, torch.ones(2, 2 * ROWS), atol=1e-5, rtol=0)
        assert agent.critic.value(prediction).abs().max() <= G_MAX + 1e-5


def test_switching_projection_off_lets_norms_drift():
    """Negative control of I1-I3: without projection the same training leaves the bounds."""
    agent = train(small_agent(project_actor=False, project_critic=False), 30)
    for network in (agent.actor, agent.critic):
        for kind, worst in norm_deviation(network).items():
            assert worst > 1e-4, kind


def test_projection_repairs_any_weights():
    agent = small_agent()
    with torch.no_grad():
        for parameter in agent.critic.parameters():
            parameter.mul_(3.7).add_(0.1)
    bias = agent.critic.head.bias.detach().clone()
    project_(agent.critic)
    assert all(worst <= 1e-5 for worst in norm_deviation(agent.critic).values())
    assert torch.equal(agent.critic.head.bias, bias)


def test_norm_diagnostics_report_the_worst_of_each_kind():
    agent = train(small_agent(), 2)
    found = agent.diagnostics()
    assert all(
        found[f"{n}/{k}_norm_deviation"] <= 1e-5
        for n in ("actor", "critic")
        for k in ("row", "batch_norm", "rms_norm")
    )
    assert found["actor/mean_grad_norm"] > 0
    with torch.no_grad():
        agent.critic.trunk.block[0].linear2.weight[1, 3] *= 1.5
        agent.actor.trunk.input_norm.scale.mul_(2)
    found = agent.diagnostics()
    assert found["critic/row_norm_deviation"].item() == pytest.approx(0.5, abs=1e-4)
    assert found["actor/batch_norm_norm_deviation"] > 0.5
