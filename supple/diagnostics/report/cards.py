"""What each metric is and how to read it, in a sentence or two.

Numbers here are definitions; the lines that judge are in ``thresholds.py``.
"""

from __future__ import annotations

from collections.abc import Mapping

CARDS: Mapping[str, tuple[str, str]] = {
    "dormant": (
        "Inactive units",
        "Units whose mean activation is at most so small a share of their layer's mean. Rarely"
        " firing units look inactive on few or narrow data; behind a batch norm it stays low even"
        " in a sick network. Sokar et al. 2023.",
    ),
    "dead_var": (
        "Constant units",
        "Units that do not vary over states, whatever their activation function.",
    ),
    "grad_dormant": (
        "Units without gradient",
        "Units that receive almost no gradient of the loss: they will not learn.",
    ),
    "srank": (
        "Feature rank (99 % of the sum)",
        "How many singular values hold 99 % of their sum. Compare equal numbers of rows; no rank"
        " alone is a verdict. Kumar et al. 2021.",
    ),
    "erank": (
        "Effective rank",
        "Exponential of the entropy of the singular values. Roy and Vetterli 2007.",
    ),
    "feature_rank": ("Feature rank", "Singular values above a fixed size. Lyle et al. 2022."),
    "pca_rank": (
        "Principal components",
        "How many hold 99 % of the variance; centred, so a common offset does not hide the rest.",
    ),
    "stable_rank": ("Stable rank", "Sum of squared singular values over the largest squared."),
    "part_ratio": ("Participation ratio", "How many directions share the variance."),
    "feat_norm": (
        "Feature length",
        "Before the last norm, where it may grow; growth with sinking rank is a warning.",
    ),
    "feat_cos": (
        "Likeness of consecutive features",
        "Near 1 the critic can hardly tell a state from the next one.",
    ),
    "feat_dot": (
        "Product of consecutive features",
        "Growth without bound together with falling rank is implicit co-adaptation. Kumar et al."
        " 2022.",
    ),
    "fit_gap": (
        "Ability to fit new targets",
        "A copy of the network and untrained twins learn the same new targets in the same way."
        " 0: as plastic as new; 1: learned nothing beyond the mean; below 0: better than new. This"
        " is the referee of plasticity. Critics with atoms or bounded flows learn under a new head:"
        " on their own they would start ahead of new networks.",
    ),
    "hess_max": (
        "Largest curvature",
        "Of the loss with targets fixed. It says whether the inner regression is stable, not"
        " whether bootstrapping is.",
    ),
    "stab_adam": (
        "Step size against curvature",
        "Above 1 the step is linearly unstable; 0.5 to 1.2 is the normal zone of large-step"
        " training. Cohen et al. 2022.",
    ),
    "seem_norm": (
        "Self-excitation",
        "Positive: along one direction value errors feed themselves through bootstrapping. Target"
        " networks damp it. Yue et al. 2023.",
    ),
    "value_bias_norm": (
        "Value bias",
        "Predicted minus achieved (soft) return, over the mean return, or over the returns'"
        " deviation where that is near 0. Clipped double critics are meant to be a little low.",
    ),
    "value_rank": (
        "Order of values",
        "Rank correlation of predicted values and achieved returns. For control the order matters"
        " more than the bias.",
    ),
    "support_clip": (
        "Mass outside the value range",
        "Share of the targets' mass beyond its ends; all but the published flow clip it.",
    ),
    "support_use": ("Used part of the value range", "Below 5 % its resolution is wasted."),
    "churn_flip": (
        "Decision churn",
        "Share of states where one update moves some joint by more than 5 % of its range.",
    ),
    "act_sat": (
        "Saturated commands",
        "Share of commands at their limits, tanh's or those at which the environment clips."
        " Saturation looks like robustness: a command that cannot move cannot be disturbed.",
    ),
    "act_pinned": (
        "Pinned commands",
        "Share of the time at the limit where a joint is more often. Bang-bang control changes"
        " between both; near 1 the joint might as well not be there.",
    ),
    "eps_frac": (
        "Adam's epsilon",
        "Share of parameters whose gradients are so small that it rules.",
    ),
    "flow_straight": (
        "Curvature of the flow",
        "0: straight. Where recovery is near 1, too, the flow ignores time and state and is no more"
        " than a one-pass critic; where it is near 0 the flow points straight at its target.",
    ),
    "flow_conv": ("Integration error", "Change of the value with four times as many steps."),
    "flow_recovery": (
        "Recovery",
        "What is left at the end of an error made on the way: below 1 later steps damp it, at 0 all"
        " of it.",
    ),
    "flow_noise_share": ("Left-over noise", "Variance over noise against variance over states."),
    "flow_sigma_res": (
        "Spread of the targets around the field",
        "Root mean square distance between targets and where the field points at its start: what"
        " targets vary at a state and action, and what the fit misses.",
    ),
    "flow_sigma_ratio": (
        "Spread of the targets over that of the noise",
        "About the gain with which the flow carries its noise to the value: below 1 it contracts."
        " Above a half give it more noise or average more targets.",
    ),
    "flow_loss": (
        "Loss by flow time",
        "Of the velocity, from this time of the flow to an eighth later.",
    ),
    "flow_outside": (
        "States outside the support",
        "Share of the states on the way that lie outside what the encoding of values tells apart.",
    ),
    "ret_mdd": (
        "Deepest fall of the return",
        "Below the best so far. Even constant performance falls by luck: only what exceeds the"
        " noise floor counts.",
    ),
    "ranld_conc": (
        "Concentration of instability",
        "Share of the worst direction in all sensitivity. Beside it what directions without any"
        " common cause would give.",
    ),
    "ranld_gain": (
        "Gain of the worst direction",
        "RMS change of the decision per standard deviation along it.",
    ),
    "ranld_split_cos": (
        "Split-half agreement",
        "Cosine between the worst directions of odd and even episodes. Below 0.9 no single"
        " direction is identified.",
    ),
    "ranld_times_random": (
        "Confirmation by finite steps",
        "How many times as far a step of 0.1 standard deviations along the worst direction moves"
        " the decision as one along the median of 20 random directions. It is confirmed from 3"
        " on, with few channels from less on: a policy that answers one direction only comes to 1.4"
        " with two channels and to 2 with three.",
    ),
    "ranld_dist": (
        "Distance to the decision boundary",
        "How far, to first order, the nearest other decision is: another choice, or a command"
        " moved by a tenth of its half range.",
    ),
    "ranld_noise_dist": (
        "Distance to the decision boundary in noise",
        "The same in standard deviations of the declared sensor noise: below 1 the sensors' own"
        " errors change the decision.",
    ),
    "ranld_noise_changed": (
        "Decisions that noise changes",
        "Share of states where a standard deviation of the declared noise, along the direction that"
        " matters most there, changes the decision.",
    ),
    "ranld_cv": (
        "Bursts",
        "Standard deviation over mean of the sensitivity along episodes.",
    ),
    "ranld_drop": (
        "Loss in closed loop",
        "Share of the return above chance that a disturbance costs, on the same starts.",
    ),
    "ranld_fcq": (
        "Feature correlation quotient",
        "How much of the nominal worst energy the direction found under a disturbance holds. Low:"
        " the policy is sensitive to other inputs there. Korkmaz 2024, fraction reconstructed.",
    ),
    "ranld_split_fcq": (
        "Quotient without a disturbance",
        "Between odd and even undisturbed episodes: what the feature correlation quotient is read"
        " against.",
    ),
    "ranld_overlap": (
        "Shared directions",
        "Squared cosine between the worst directions of two policies on the same states.",
    ),
}


def title_of(metric: str) -> str:
    """What a metric is called in words, or its own name."""
    return CARDS[metric][0] if metric in CARDS else metric
