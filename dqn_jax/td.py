"""Temporal-difference targets and losses, each on ONE transition, or one sequence of them; callers `vmap`.

Where rlax has the function, its name, argument order and sign are the same. Not here: networks, batches, gradients.

Shapes: A actions, T steps, K atoms of a return's distribution, N and M quantiles.
"""

import chex
import jax
import jax.numpy as jnp


def q_learning(
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    stop_target_gradients: bool = True,
) -> jax.Array:
    """Computes the TD error of Q-learning: y - Q(s, a) with y = r + discount * max_a' Q'(s', a').

    Args:
      q_tm1: [A] online values of the state acted on.
      a_tm1: [] action taken.
      r_t: [] reward.
      discount_t: [] gamma^n, 0 where the episode terminated.
      q_t: [A] target-network values of the next state.
      stop_target_gradients: whether y is a constant to the gradient, as in DQN.

    Returns:
      [] TD error.

    Source: Mnih et al. (2015), the loss of algorithm 1; Watkins & Dayan (1992).
    """
    chex.assert_rank([q_tm1, a_tm1, r_t, discount_t, q_t], [1, 0, 0, 0, 1])
    chex.assert_type([q_tm1, a_tm1, r_t, discount_t, q_t], [float, int, float, float, float])
    return _td_error(q_tm1, a_tm1, r_t, discount_t, jnp.max(q_t), stop_target_gradients)


def double_q_learning(
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t_value: jax.Array,
    q_t_selector: jax.Array,
    stop_target_gradients: bool = True,
) -> jax.Array:
    """Computes the TD error of Double Q-learning: the online network chooses the next action, the target network values it.

    Args:
      q_tm1: [A] online values of the state acted on.
      a_tm1: [] action taken.
      r_t: [] reward.
      discount_t: [] gamma^n, 0 where the episode terminated.
      q_t_value: [A] target-network values of the next state.
      q_t_selector: [A] online values of the next state.
      stop_target_gradients: whether the target is a constant to the gradient.

    Returns:
      [] TD error.

    Source: van Hasselt, Guez & Silver (2016), equation 4 with the target of Double DQN.
    """
    chex.assert_rank([q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector], [1, 0, 0, 0, 1, 1])
    chex.assert_type([q_tm1, a_tm1, r_t, discount_t, q_t_value, q_t_selector], [float, int, float, float, float, float])
    return _td_error(q_tm1, a_tm1, r_t, discount_t, q_t_value[jnp.argmax(q_t_selector)], stop_target_gradients)


def _td_error(
    q_tm1: jax.Array, a_tm1: jax.Array, r_t: jax.Array, discount_t: jax.Array, v_t: jax.Array, stop_target_gradients: bool
) -> jax.Array:
    target = r_t + discount_t * v_t
    if stop_target_gradients:
        target = jax.lax.stop_gradient(target)
    return target - q_tm1[a_tm1]


def lambda_returns(
    r_t: jax.Array,
    discount_t: jax.Array,
    v_t: jax.Array,
    lambda_: jax.Array | float = 1.0,
    stop_target_gradients: bool = False,
) -> jax.Array:
    """Computes lambda returns G_t = r_t + discount_t * ((1 - lambda) v_t + lambda G_{t+1}); the last is r + discount * v.

    Args:
      r_t: [T] rewards.
      discount_t: [T] gamma, 0 where the episode terminated.
      v_t: [T] values of the states that the steps led to.
      lambda_: [], or [T] of each step, share of what follows in a return: 0 bootstraps after each step, 1 after the last alone.
      stop_target_gradients: whether the returns are constants to the gradient.

    Returns:
      [T] returns.

    Source: Sutton (1988); Peng & Williams (1996) where v is max_a Q(s, a).
    """
    chex.assert_rank([r_t, discount_t, v_t, lambda_], [1, 1, 1, {0, 1}])
    chex.assert_type([r_t, discount_t, v_t, lambda_], float)
    chex.assert_equal_shape([r_t, discount_t, v_t])

    def before(following: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        r, discount, v, share = step
        result = r + discount * ((1.0 - share) * v + share * following)
        return result, result

    shares = jnp.broadcast_to(lambda_, r_t.shape)
    _, returns = jax.lax.scan(before, v_t[-1], (r_t, discount_t, v_t, shares), reverse=True)
    return jax.lax.stop_gradient(returns) if stop_target_gradients else returns


def munchausen_q_learning(
    q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_t: jax.Array,
    q_tm1_target: jax.Array,
    temperature: jax.Array | float,
    bonus: jax.Array | float,
    least: jax.Array | float,
) -> jax.Array:
    """Computes the TD error of Munchausen DQN, whose target adds the log-probability of the action taken.

    With pi = softmax(Q' / temperature) of the target network, y = r + bonus * clip(temperature * log pi(a|s), least, 0)
    + discount * sum_a' pi(a'|s') (Q'(s', a') - temperature * log pi(a'|s')). It is a constant to the gradient.

    Args:
      q_tm1: [A] online values of the state acted on.
      a_tm1: [] action taken.
      r_t: [] reward.
      discount_t: [] gamma^n, 0 where the episode terminated.
      q_t: [A] target-network values of the next state.
      q_tm1_target: [A] target-network values of the state acted on.
      temperature: [] entropy temperature (tau), above 0.
      bonus: [] share of the log-probability (alpha).
      least: [] bound below of temperature * log pi(a|s) (l_0).

    Returns:
      [] TD error.

    Source: Vieillard, Pietquin & Geist (2020), equation 2, with the clipping of section 2.
    """
    chex.assert_rank([q_tm1, a_tm1, r_t, discount_t, q_t, q_tm1_target], [1, 0, 0, 0, 1, 1])
    chex.assert_type([q_tm1, a_tm1, r_t, discount_t, q_t, q_tm1_target], [float, int, float, float, float, float])
    log_pi_tm1, log_pi_t = (temperature * jax.nn.log_softmax(q / temperature) for q in (q_tm1_target, q_t))
    r_t = r_t + bonus * jnp.clip(log_pi_tm1[a_tm1], least, 0.0)
    v_t = jnp.sum(jax.nn.softmax(q_t / temperature) * (q_t - log_pi_t))
    return _td_error(q_tm1, a_tm1, r_t, discount_t, v_t, stop_target_gradients=True)


def categorical_l2_project(z_p: jax.Array, probs: jax.Array, z_q: jax.Array) -> jax.Array:
    """Projects a distribution onto other atoms: the mass of each is shared by its two neighbours, by how near they are.

    Args:
      z_p: [K] atoms, in any order; those beyond the ends of `z_q` are moved there.
      probs: [K] their probabilities.
      z_q: [K'] atoms to project onto, increasing.

    Returns:
      [K'] probabilities.

    Source: Bellemare, Dabney & Munos (2017), equation 7.
    """
    chex.assert_rank([z_p, probs, z_q], 1)
    chex.assert_type([z_p, probs, z_q], float)
    gaps = jnp.diff(z_q)
    # Of each atom of z_q, one over the gaps to its neighbours; an end has but one, and nothing lies beyond it.
    above, below = 1.0 / jnp.append(gaps, 1.0), 1.0 / jnp.insert(gaps, 0, 1.0)
    z_p = jnp.clip(z_p, z_q[0], z_q[-1])

    def add(atom: jax.Array, mass: jax.Array) -> jax.Array:
        distance = z_p[atom] - z_q
        # In gaps: of the two the one on the other side is negative.
        apart = jnp.maximum(distance * above, -distance * below)
        return mass + jnp.maximum(1.0 - apart, 0.0) * probs[atom]

    # Atom by atom: all shares at once, K times K', would take half as long again.
    return jax.lax.fori_loop(0, z_p.size, add, jnp.zeros_like(z_q))


def categorical_q_learning(
    q_atoms_tm1: jax.Array,
    q_logits_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_atoms_t: jax.Array,
    q_logits_t: jax.Array,
    stop_target_gradients: bool = True,
) -> jax.Array:
    """Computes the loss of C51: the cross-entropy of the projected target distribution and the online one.

    Args:
      q_atoms_tm1: [K] atoms of the online distributions.
      q_logits_tm1: [A, K] online logits of the state acted on.
      a_tm1: [] action taken.
      r_t: [] reward.
      discount_t: [] gamma^n, 0 where the episode terminated.
      q_atoms_t: [K] atoms of the target distributions.
      q_logits_t: [A, K] target-network logits of the next state.
      stop_target_gradients: whether the target is a constant to the gradient.

    Returns:
      [] loss.

    Source: Bellemare, Dabney & Munos (2017), algorithm 1.
    """
    chex.assert_rank([q_atoms_t, q_logits_t], [1, 2])
    selector = jax.nn.softmax(q_logits_t) @ q_atoms_t
    return categorical_double_q_learning(
        q_atoms_tm1, q_logits_tm1, a_tm1, r_t, discount_t, q_atoms_t, q_logits_t, selector, stop_target_gradients
    )


def categorical_double_q_learning(
    q_atoms_tm1: jax.Array,
    q_logits_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    q_atoms_t: jax.Array,
    q_logits_t: jax.Array,
    q_t_selector: jax.Array,
    stop_target_gradients: bool = True,
) -> jax.Array:
    """Computes the loss of C51 where `q_t_selector` [A] chooses the next action, as in Rainbow.

    The other arguments are those of `categorical_q_learning`.

    Returns:
      [] loss.

    Source: Hessel et al. (2018), "The integrated agent".
    """
    chex.assert_rank([q_atoms_tm1, q_logits_tm1, a_tm1, r_t, discount_t, q_atoms_t, q_logits_t], [1, 2, 0, 0, 0, 1, 2])
    chex.assert_rank(q_t_selector, 1)
    chex.assert_type(
        [q_atoms_tm1, q_logits_tm1, a_tm1, r_t, discount_t, q_atoms_t, q_logits_t, q_t_selector],
        [float, float, int, float, float, float, float, float],
    )
    probs = jax.nn.softmax(q_logits_t[jnp.argmax(q_t_selector)])
    target = categorical_l2_project(r_t + discount_t * q_atoms_t, probs, q_atoms_tm1)
    if stop_target_gradients:
        target = jax.lax.stop_gradient(target)
    return -jnp.sum(target * jax.nn.log_softmax(q_logits_tm1[a_tm1]))


def quantile_q_learning(
    dist_q_tm1: jax.Array,
    tau_q_tm1: jax.Array,
    a_tm1: jax.Array,
    r_t: jax.Array,
    discount_t: jax.Array,
    dist_q_t_selector: jax.Array,
    dist_q_t: jax.Array,
    huber_param: jax.Array | float = 0.0,
    stop_target_gradients: bool = True,
) -> jax.Array:
    """Computes the loss of QR-DQN, and of IQN: quantile regression of the online quantiles on the target's.

    Args:
      dist_q_tm1: [N, A] online quantiles of the state acted on.
      tau_q_tm1: [N] their probabilities.
      a_tm1: [] action taken.
      r_t: [] reward.
      discount_t: [] gamma^n, 0 where the episode terminated.
      dist_q_t_selector: [M', A] quantiles of the next state whose mean chooses the action.
      dist_q_t: [M, A] target-network quantiles of the next state.
      huber_param: see `quantile_regression_loss`.
      stop_target_gradients: whether the target is a constant to the gradient.

    Returns:
      [] loss.

    Source: Dabney et al. (2018b), algorithm 1; Dabney et al. (2018a), equation 3.
    """
    chex.assert_rank([dist_q_tm1, tau_q_tm1, a_tm1, r_t, discount_t, dist_q_t_selector, dist_q_t], [2, 1, 0, 0, 0, 2, 2])
    chex.assert_type(
        [dist_q_tm1, tau_q_tm1, a_tm1, r_t, discount_t, dist_q_t_selector, dist_q_t],
        [float, float, int, float, float, float, float],
    )
    a_t = jnp.argmax(jnp.mean(dist_q_t_selector, axis=0))
    target = r_t + discount_t * dist_q_t[:, a_t]
    if stop_target_gradients:
        target = jax.lax.stop_gradient(target)
    return quantile_regression_loss(dist_q_tm1[:, a_tm1], tau_q_tm1, target, huber_param)


def quantile_regression_loss(
    dist_src: jax.Array, tau_src: jax.Array, dist_target: jax.Array, huber_param: jax.Array | float = 0.0
) -> jax.Array:
    """Computes the loss whose minimum are the quantiles of a target's samples.

    Args:
      dist_src: [N] quantiles.
      tau_src: [N] their probabilities.
      dist_target: [M] samples, or quantiles, of the target.
      huber_param: [] bound (kappa) up to which errors are squared; 0 takes their absolute value.

    Returns:
      [] loss: summed over the N, averaged over the M.

    Source: Dabney et al. (2018b), equations 8 and 10.
    """
    chex.assert_rank([dist_src, tau_src, dist_target], 1)
    chex.assert_type([dist_src, tau_src, dist_target], float)
    error = dist_target[None, :] - dist_src[:, None]
    # Huber's loss, whose slope is the clipped error: with that and the weight as constants, the same gradient in half the time.
    kappa = jnp.maximum(huber_param, 1e-6)
    slope = jax.lax.stop_gradient(jnp.clip(error, -kappa, kappa))
    weight = jax.lax.stop_gradient(jnp.where(error < 0, 1.0 - tau_src[:, None], tau_src[:, None]))
    return jnp.sum(jnp.mean(weight * slope * (error - 0.5 * slope), axis=1)) / kappa


def squared_error(td_error: jax.Array) -> jax.Array:
    """Computes (y - Q)^2 [] of a TD error [], the loss of DQN's algorithm 1 (Mnih et al. 2015): no factor of one half."""
    chex.assert_type(td_error, float)
    return jnp.square(td_error)


def huber_loss(x: jax.Array, delta: jax.Array | float = 1.0) -> jax.Array:
    """Computes the loss [] of an error x []: x^2 / 2 for |x| <= delta, else delta * (|x| - delta / 2).

    Its gradient is x clipped to [-delta, delta].

    Source: Huber (1964); with delta = 1 it is the error clipping of Mnih et al. (2015).
    """
    chex.assert_type(x, float)
    clipped = jnp.minimum(jnp.abs(x), delta)
    return 0.5 * jnp.square(clipped) + delta * (jnp.abs(x) - clipped)
