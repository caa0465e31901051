"""The derivative of every primitive in one line, file by file, as `docs/primitives.md` shows them.

    ROOMS : file -> (title, the principle of its derivatives, primitive -> formula)

The inputs are `x`, or `x, y`, or have the names that the formula gives them; the result is `y`, or
`z` if `y` is an input.  A formula for `y_dot` is the pushforward.  A formula for `x_bar` is the
transpose of a linear operation, whose pushforward is the operation itself.
"""

from __future__ import annotations

SAME = "`y_dot = x_dot`"
STEP = "`y_dot = 0`: a step function"
TRUTH = "`y_dot = 0`: a truth value"
BITS = "`y_dot = 0`: an operation on bits"
INDEX = "`y_dot = 0`: an index"
SOURCE = "`y_dot = 0`: no input has a tangent"
RANDOM = "`y_dot = 0`: random bits, or a key"
INSIDE = "the derivative of the equations inside"
REFUSED = "an error: it calls a function outside JAX, whose derivative nobody knows"
COPIED = "`x_bar = y_bar`"
SOLVED = "`A x = b`: `x_dot = A^-1 (b_dot - A_dot x)`, `b_bar = A^-T x_bar`"
MEAN = "`y_dot` = the mean of `x_i_dot` over all `i` with `x_i = y`"
MEAN_SCATTERED = "`y_dot` = the mean of `x_dot` and `u_j_dot`, of those that are equal to `y`"

# ---- element by element --------------------------------------------------------------------------

ELEMENTWISE = {
    "neg": "`y_dot = -x_dot`",
    "add": "`z_dot = x_dot + y_dot`",
    "sub": "`z_dot = x_dot - y_dot`",
    "mul": "`z_dot = y x_dot + x y_dot`",
    "div": "`z_dot = (x_dot - z y_dot) / y`",
    "rem": "`x = n y + z`, `n` an integer: `z_dot = x_dot - n y_dot`",
    "add_any": "`z_dot = x_dot + y_dot`",
    "square": "`y_dot = 2 x x_dot`",
    "one_minus_square": "`y_dot = -2 x x_dot`",
    "sqrt": "`y_dot = x_dot / (2 y)`",
    "rsqrt": "`y_dot = -y x_dot / (2 x)`",
    "cbrt": "`y_dot = x_dot / (3 y^2)`",
    "integer_pow": "`y = x^n`: `y_dot = n x^(n-1) x_dot`",
    "pow": "`z = x^y`: `z_dot = y x^(y-1) x_dot + log(x) z y_dot`",
    "polynomial": "`y = sum_i c_i x^i`: `y_dot = sum_i (i c_i x^(i-1) x_dot + c_i_dot x^i)`",
    "exp": "`y_dot = y x_dot`",
    "exp2": "`y_dot = log(2) y x_dot`",
    "expm1": "`y_dot = exp(x) x_dot`",
    "log": "`y_dot = x_dot / x`",
    "log1p": "`y_dot = x_dot / (1 + x)`",
    "log2": "`y_dot = x_dot / (log(2) x)`",
    "logistic": "`y_dot = x_dot / (4 cosh(x/2)^2)`",
    "sin": "`y_dot = cos(x) x_dot`",
    "cos": "`y_dot = -sin(x) x_dot`",
    "tan": "`y_dot = (1 + y^2) x_dot`",
    "sinh": "`y_dot = cosh(x) x_dot`",
    "cosh": "`y_dot = sinh(x) x_dot`",
    "tanh": "`y_dot = x_dot / cosh(x)^2`",
    "asin": "`y_dot = x_dot / sqrt(1 - x^2)`",
    "acos": "`y_dot = -x_dot / sqrt(1 - x^2)`",
    "atan": "`y_dot = x_dot / (1 + x^2)`",
    "asinh": "`y_dot = x_dot / sqrt(1 + x^2)`",
    "acosh": "`y_dot = x_dot / (sqrt(x - 1) sqrt(x + 1))`",
    "atanh": "`y_dot = x_dot / (1 - x^2)`",
    "atan2": "`z_dot = (y x_dot - x y_dot) / (x^2 + y^2)`",
    "max": "`z_dot = x_dot` where `x > y`, `y_dot` where `x < y`, their mean where `x = y`",
    "min": "`z_dot = x_dot` where `x < y`, `y_dot` where `x > y`, their mean where `x = y`",
    "clamp": "`y_dot = x_dot` where `low < x < high`, `low_dot` below, `high_dot` above",
    "select_n": "`y = x_k`: `y_dot = x_k_dot`; `x_k_bar = y_bar` where `k` is selected, else 0",
    "real": "`y = Re x`: `x_bar = y_bar`",
    "imag": "`y = Im x`: `x_bar = -i y_bar`",
    "conj": "`x_bar = conj(y_bar)`",
    "complex": "`z = x + i y`: `x_bar = Re z_bar`, `y_bar = -Im z_bar`",
    "abs": (
        "`y_dot = Re(conj(s) x_dot)` with `s = x / abs(x)`; at 0 `s = 1` for real `x`, else `s = 0`"
    ),
    "sign": "`y_dot = i s Im(conj(s) x_dot) / abs(x)` with `s = x / abs(x)`; 0 for real `x`",
    "convert_element_type": f"{COPIED}, in the type of `x`",
    "reduce_precision": f"{COPIED}, rounded as `y` is",
    "copy": SAME,
    "nextafter": "`z_dot = x_dot`",
    "name": SAME,
    **dict.fromkeys(("floor", "ceil", "round"), STEP),
    "is_finite": TRUTH,
    "stop_gradient": "`y_dot = 0`, by definition",
    **dict.fromkeys(("eq", "ne", "lt", "le", "gt", "ge", "eq_to", "lt_to", "le_to"), TRUTH),
    **dict.fromkeys(("and", "or", "xor", "not", "population_count", "clz"), BITS),
    **dict.fromkeys(("shift_left", "shift_right_logical", "shift_right_arithmetic"), BITS),
    "bitcast_convert_type": BITS,
    "mulhi": "`y_dot = 0`: a product of integers",
}

# ---- moving, adding up ---------------------------------------------------------------------------

SHAPE = {
    "reshape": "`x_bar = reshape(y_bar)`, to the shape of `x`",
    "squeeze": "`x_bar = expand_dims(y_bar)`",
    "transpose": "`x_bar = transpose(y_bar)`, by the inverse permutation",
    "rev": "`x_bar = rev(y_bar)`",
    "broadcast_in_dim": "`x_bar` = the sum of `y_bar` over the dimensions of copies",
    "tile": "`x_bar` = the sum of the tiles of `y_bar`",
    "concatenate": "`x_i_bar` = part `i` of `y_bar`",
    "split": "`x_bar = concatenate(y_1_bar, ..., y_n_bar)`",
    "stack": "`x_i_bar = y_bar[i]`",
    "unstack": "`x_bar = stack(y_1_bar, ..., y_n_bar)`",
    "slice": "`x_bar = pad(y_bar)`, with 0 elsewhere",
    "pad": "`x_bar` = `y_bar` without its padding, `value_bar` = the sum of its padding",
    "device_put": f"{COPIED}, on the device of `x`",
    "optimization_barrier": f"{COPIED}, with a barrier",
    "sharding_constraint": f"{COPIED}, with the same constraint",
    "layout_constraint": f"{COPIED}, with the same constraint",
    "relayout": f"{COPIED}, in the same layout",
    "reshard": f"{COPIED}, with the sharding of `x`",
    "xla_metadata_value": COPIED,
    "shard_alike": f"{COPIED}, both in one sharding",
    **dict.fromkeys(
        ("host_local_array_to_global_array", "global_array_to_host_local_array"),
        f"{COPIED}, converted by the other one of the two",
    ),
    "tie": "`z = y`: `y_bar = z_bar`",
    **dict.fromkeys(("to_edtype", "from_edtype"), f"{COPIED}, in the type of the tangents of `x`"),
    **dict.fromkeys(("iota", "empty", "empty2", "create_token", "after_all"), SOURCE),
}

REDUCTION = {
    "reduce_sum": "`x_i_bar = y_bar`",
    "cumsum": "`x_i_bar = sum_(k >= i) y_k_bar`",
    "reduce_max": MEAN,
    "reduce_min": MEAN,
    "reduce_prod": "in pairs: `(a, a_dot) (b, b_dot) = (a b, a_dot b + a b_dot)`",
    "cumprod": "`y_k_dot = x_k y_(k-1)_dot + y_(k-1) x_k_dot`",
    "cummax": "`y_k_dot` = the tangent of the larger of `y_(k-1)` and `x_k`, the mean if equal",
    "cummin": "`y_k_dot` = the tangent of the smaller of `y_(k-1)` and `x_k`, the mean if equal",
    "cumlogsumexp": "`y_k_dot = exp(y_(k-1) - y_k) y_(k-1)_dot + exp(x_k - y_k) x_k_dot`",
    "argmax": INDEX,
    "argmin": INDEX,
    **dict.fromkeys(("reduce_and", "reduce_or", "reduce_xor"), BITS),
}

CONTRACTION = {
    "dot_general": (
        "`y[b,m,n] = sum_c x[b,m,c] w[b,c,n]`: `x_bar[b,m,c] = sum_n y_bar[b,m,n] w[b,c,n]`, "
        "`w_bar[b,c,n] = sum_m x[b,m,c] y_bar[b,m,n]`"
    ),
    "ragged_dot_general": (
        "the same, with a `w` for each group `g` of rows `r`: "
        "`x_bar[r,c] = sum_n y_bar[r,n] w[g(r),c,n]`, "
        "`w_bar[g,c,n] = sum_(r in g) x[r,c] y_bar[r,n]`"
    ),
    "conv_general_dilated": (
        "`y[i] = sum_k x[s i + d k] w[k]`: "
        "`x_bar[q] = sum_(s i + d k = q) y_bar[i] w[k]`, "
        "`w_bar[k] = sum_i x[s i + d k] y_bar[i]`"
    ),
}

INDEXING = {
    "dynamic_slice": "`x_bar = dynamic_update_slice(0, y_bar, i)`",
    "dynamic_update_slice": (
        "`u_bar = dynamic_slice(y_bar, i)`, `x_bar` = `y_bar` with 0 where `u` was written"
    ),
    "gather": "`y_j = x[i_j]`: `x_bar[i_j] += y_j_bar`",
    "scatter": (
        "`y[i_j] = u_j`: `u_j_bar = y_bar[i_j]`, 0 if another `u` overwrote it; `x_bar` = `y_bar` "
        "with 0 where `u` was written. Of `x.at[i].apply(f)`, that of `f(f(... x_p))` at each place"
    ),
    "scatter-add": "`y[i_j] += u_j`: `x_bar = y_bar`, `u_j_bar = y_bar[i_j]`",
    "scatter-sub": "`y[i_j] -= u_j`: `x_bar = y_bar`, `u_j_bar = -y_bar[i_j]`",
    "scatter-mul": (
        "`y = x prod_j u_j` at each place: "
        "`y_dot = x_dot prod_j u_j + x sum_j u_j_dot prod_(k /= j) u_k`"
    ),
    "scatter-max": MEAN_SCATTERED,
    "scatter-min": MEAN_SCATTERED,
}

WINDOWS = {
    "reduce_window_sum": "`x_i_bar` = the sum of `y_w_bar` over the windows `w` with `x_i` in them",
    "reduce_window_max": "`y_w_dot = x_i_dot`, where `x_i` is the largest in the window `w`",
    "reduce_window_min": "`y_w_dot = x_i_dot`, where `x_i` is the smallest in the window `w`",
    "select_and_gather_add": (
        "`y_w = t_i` where `x_i` is selected in the window `w`: `t_i_bar = sum_w y_w_bar`"
    ),
    "select_and_scatter_add": (
        "`y_i = sum_w s_w` where `x_i` is selected in the window `w`: `s_w_bar = y_i_bar`"
    ),
}

SORTING = {
    "sort": "`y = x[s]`, `s` the permutation that sorts: `y_dot = x_dot[s]`",
    "top_k": "`y = x[s]`, `s` the places of the largest: `y_dot = x_dot[s]`",
    "approx_top_k": "`y = x[s]`, `s` the places that it found: `y_dot = x_dot[s]`",
}

# ---- functions and matrices ----------------------------------------------------------------------

SPECIAL = {
    "erf": "`y_dot = (2 / sqrt(pi)) exp(-x^2) x_dot`",
    "erfc": "`y_dot = -(2 / sqrt(pi)) exp(-x^2) x_dot`",
    "erf_inv": "`y_dot = (sqrt(pi) / 2) exp(y^2) x_dot`",
    "bessel_i0e": "`y_dot = (i1e(x) - sign(x) y) x_dot`",
    "bessel_i1e": "`y_dot = (i0e(x) - y / x - sign(x) y) x_dot`",
}

ZETA = {
    "lgamma": "`y_dot = digamma(x) x_dot`",
    "digamma": "`y_dot = polygamma(1, x) x_dot`",
    "polygamma": "`y = polygamma(m, x)`: `y_dot = polygamma(m + 1, x) x_dot`",
    "zeta": (
        "`y = sum_n (n + q)^(-s)`: "
        "`y_dot = -sum_n log(n + q) (n + q)^(-s) s_dot - s zeta(s + 1, q) q_dot`"
    ),
}

INCOMPLETE = {
    "igamma": "`y = P(a, x)`: `y_dot = P_a a_dot + x^(a-1) exp(-x) / Gamma(a) x_dot`",
    "igammac": "`y = 1 - P(a, x)`: `y_dot` = minus the one of `igamma`",
    "igamma_grad_a": (
        "`y = P_a(a, x)`: `y_dot = P_aa a_dot + (log(x) - digamma(a)) x^(a-1) exp(-x) / Gamma(a) "
        "x_dot`"
    ),
    "regularized_incomplete_beta": (
        "`y = I(a, b, x)`: `y_dot = I_a a_dot + I_b b_dot + x^(a-1) (1-x)^(b-1) / B(a, b) x_dot`"
    ),
    "random_gamma": "`P(a, y)` keeps the value that was drawn: `y_dot = -(P_a / P_y) a_dot`",
}

LINALG = {
    "triangular_solve": SOLVED,
    "tridiagonal_solve": SOLVED,
    "cholesky": "`A = L L^H`: `L_dot = L Phi(L^-1 A_dot L^-H)`",
    "cholesky_update": (
        "`S^T S = C`, `C = R^T R + w w^T`: `S_dot^T = L Phi(L^-1 C_dot L^-T)`, with `L = S^T`"
    ),
    "symmetric_product": (
        "`y = alpha a a^T + beta c`: `y_dot = alpha (a_dot a^T + a a_dot^T) + beta c_dot`"
    ),
    "lu": "`P A = L U`: `L_dot = L tril(X, -1)`, `U_dot = triu(X) U`, with `X = L^-1 P A_dot U^-1`",
    "lu_pivots_to_permutation": "`y_dot = 0`: a permutation",
}

ORTHOGONAL = {
    "qr": (
        "`Q_dot = Q W + (1 - Q Q^H) A_dot R^-1`, `R_dot = Q^H A_dot - W R`, with "
        "`W = Phi(X) - Phi(X)^H`, `X = Q^H A_dot R^-1`"
    ),
    "householder_product": (
        "`Q = 1 - V T V^H`: `Q_dot = -(V_dot T V^H + V T_dot V^H + V T V_dot^H)`"
    ),
    "ormqr": "`y = Q c`: `y_dot = Q_dot c + Q c_dot`, `c_bar = Q^T y_bar`",
    "geqrf": "`R_dot` as for `qr`; `V_dot` from the factorization `E - Q = V U`, as for `lu`",
    "geqp3": "as for `geqrf`, with the columns of `A_dot` in the order of the pivots",
}

SPECTRAL = {
    "eigh": (
        "`P = V^H A_dot V`: `w_dot = diag(P)`, `V_dot = V X`, with `X_ij = P_ij / (w_j - w_i)`, "
        "`X_ii = 0`; NaN in the vectors of repeated eigenvalues"
    ),
    "svd": (
        "`P = U^H A_dot V`: `s_dot = Re diag(P)`, `U_dot = U X + (1 - U U^H) A_dot V S^-1`, and so "
        "for `V`, with `P = X S + S_dot - S Y` and skew-Hermitian `X` and `Y`; NaN as for `eigh`, "
        "and for a complement of two vectors or more"
    ),
    "eig": (
        "`P = V^-1 A_dot V`: `w_dot = diag(P)`, `V_dot = V X` with `X_ij = P_ij / (w_j - w_i)`, "
        "minus the part that would change the length or phase of a vector; NaN as for `eigh`"
    ),
    "schur": (
        "`S = Q^H A_dot Q`: `T_dot = S - X T + T X`, `Q_dot = Q X`, with the skew-Hermitian `X` "
        "for which `T_dot` has the form of `T`: triangular, or with blocks whose diagonals are "
        "equal; NaN where `T_ii = T_jj`, and where a block is the same in all rotations"
    ),
}

FFT = {
    "fft": (
        "`F = F^T`: `x_bar = F y_bar`; of `rfft` `x_bar = n irfft(conj(y_bar) / c)`, and of "
        "`irfft` `x_bar = (c / n) conj(rfft(y_bar))`, where a frequency stands for `c` of them"
    ),
}

# ---- devices, randomness, effects ----------------------------------------------------------------

COLLECTIVES = {
    "psum": "`x_e_bar = sum_d y_d_bar`",
    "all_gather": "`x_e_bar = sum_d y_d_bar[e]`: a `reduce_scatter`",
    "reduce_scatter": "`x_e_bar = (y_0_bar, y_1_bar, ...)`: an `all_gather`",
    "all_to_all": "`x_e_bar = (y_0_bar[e], y_1_bar[e], ...)`: an `all_to_all`",
    "ppermute": "`y_(p(e)) = x_e`: `x_e_bar = y_(p(e))_bar`",
    "pbroadcast": "`y_d = x_s`: `x_s_bar = sum_d y_d_bar`",
    "pbroadcast_dynamic": "`y_d = x_s`: `x_s_bar = sum_d y_d_bar`",
    "ragged_all_to_all": "the rows of `x_bar` are those of `y_bar`, sent back",
    "psum_invariant": "`x_d_bar = y_bar`: a `pvary`",
    "pvary": "`x_bar = sum_d y_d_bar`: a `psum_invariant`",
    "all_gather_invariant": "`x_e_bar = y_bar[e]`: a slice",
    "vary_unreduced_cast": "`x_d_bar = y_bar`: a `reduced_vary_cast`",
    "reduced_vary_cast": "`x_bar = sum_d y_d_bar`, not carried out: a `vary_unreduced_cast`",
    "unreduced_psum": "`x_bar = y_bar`: a `preduced`",
    "preduced": "`x_bar` = the sum for which `y_bar` stands: an `unreduced_psum`",
    "unreduced_reduce_scatter": "`x_bar = (y_0_bar, y_1_bar, ...)`: an `all_gather_reduced`",
    "all_gather_reduced": "`x_e_bar` = part `e` of the sum for which `y_bar` stands: an "
    "`unreduced_reduce_scatter`",
    "inspect_sharding": "no output; it happens once, with the primals",
}

RANDOM_BITS = dict.fromkeys(
    [
        "random_seed",
        "random_split",
        "random_fold_in",
        "random_bits",
        "random_wrap",
        "random_unwrap",
        "random_clone",
        "threefry2x32",
        "rng_bit_generator",
    ],
    RANDOM,
)

EFFECTS = {
    **dict.fromkeys(
        ("debug_print", "debug_callback", "check", "dce_sink"),
        "no output; it happens once, with the primals",
    ),
    **dict.fromkeys(("pure_callback", "io_callback", "ffi_call", "buffer_callback"), REFUSED),
}

# ---- functions inside functions ------------------------------------------------------------------

ABSORBING = "functrans's own, for `strong_zeros`: as for the plain product, but zeros absorb"

CONTROL_FLOW = {
    "jit": "`jit (jvp f)`; transposed, `jit` of the transpose of the linear half",
    "call": INSIDE,
    "closed_call": INSIDE,
    "eval_jaxpr": INSIDE,
    "composite": INSIDE,
    "hi_with_rules": "functrans's own, for a `call_hi_primitive` with rules of its own: by these",
    "call_hi_primitive": "the derivative of the function for which it stands; for a root, "
    "`f(p, x) = 0`: `x_dot = -(df/dx)^-1 (df/dp) p_dot`",
    "custom_vmap_call": f"{INSIDE}, batched by the derivative of the user's rule",
    "linear_call": "`y = A(r) x`: `y_dot = A x_dot + A_dot x`, `x_bar` by the user's transpose",
    "remat2": "`x, x_dot -> y_dot`, which evaluates again all values that were not kept",
    "custom_jvp_call": "`y_dot` by the user's rule",
    "custom_vjp_call": "`x_bar` by the user's rule, `y_dot` by the transpose of that rule",
    "transposed_backward_rule": "functrans's own, for a `custom_vjp` rule that waits for `y_bar`: "
    "`<y_bar, y_dot> = <bwd(r, y_bar), x_dot>`",
    **dict.fromkeys(("strong_mul", "strong_div"), ABSORBING),
    **dict.fromkeys(("strong_triangular_solve", "strong_tridiagonal_solve"), ABSORBING),
    **dict.fromkeys(("strong_dot_general", "strong_conv_general_dilated"), ABSORBING),
    "strong_ragged_dot_general": ABSORBING,
    "remat_opt": INSIDE,
    "cond": "`y = f_i(x)`: `y_dot = J f_i(x) x_dot`, `x_bar = J f_i(x)^T y_bar`",
    "scan": "a loop over pairs, `(c, c_dot), (x, x_dot) -> (c', c_dot'), (y, y_dot)`; "
    "the transpose runs backwards",
    "while": "`(c, c_dot) = (f(c), J f(c) c_dot)` while `g(c)`; linearized, `counted_loop`",
    "counted_loop": "functrans's own: a loop whose steps are counted; transposed, `reversed_loop`",
    "reversed_loop": "functrans's own: `x_t_bar = (J f(c_t))^T x_(t+1)_bar`, the last step first",
    "custom_linear_solve": SOLVED,
    "hessenberg": "the derivative of the loop `A -> H_k^H A H_k`, `H_k = 1 - tau_k v_k v_k^H`, "
    "where `v_k` and `tau_k` are functions of column `k`",
    "tridiagonal": "as for `hessenberg`, of the Hermitian matrix that the triangle stands for",
    "reduce": "the derivative of the fold from the left, `f(f(y0, x_1), x_2)` and so on",
    "reduce_window": "the derivative of the fold from the left, `f(f(y0, x_1), x_2)` and so on",
    **dict.fromkeys(
        ("compute_on", "xla_metadata_call", "fused_call", "program_order"),
        "the same call, with the derivative of the program inside",
    ),
    "pallas_call": "the kernel of pairs of references, `(x, x_dot) -> (y, y_dot)`; not in reverse",
    **dict.fromkeys(
        ("get", "swap", "addupdate", "masked_load", "masked_swap"),
        "in a kernel: the same operation on the reference of the tangent",
    ),
    "get_global": SOURCE,
    "shard_map": "`shard_map (jvp f)`; transposed, the specs of inputs and outputs change sides",
}

# ---- sparse arrays -------------------------------------------------------------------------------

WRITTEN = "`y = E d`: `d_bar = E^T y_bar`"
READ = "`d = E^T a`: `a_bar = E d_bar`"
FOUND = "`d = E^T a`: `d_dot = E^T a_dot`, where the places are constant nearby"
PRODUCT = "`y = (E d) x`: `d_bar = E^T (y_bar x^T)`, `x_bar = (E d)^T y_bar`"
REARRANGED = "`d' = A d`: `d_dot' = A d_dot`, where A depends on the places alone"

SPARSE = {
    **dict.fromkeys(
        ("bcoo_todense", "bcsr_todense", "coo_todense", "csr_todense", "todense"), WRITTEN
    ),
    **dict.fromkeys(("bcoo_extract", "bcsr_extract"), READ),
    **dict.fromkeys(("bcoo_fromdense", "bcsr_fromdense", "coo_fromdense", "csr_fromdense"), FOUND),
    **dict.fromkeys(
        (
            *("bcoo_dot_general", "bcsr_dot_general"),
            *("coo_matvec", "coo_matmat", "csr_matvec", "csr_matmat"),
        ),
        PRODUCT,
    ),
    "bcoo_dot_general_sampled": "`d = E^T (a b)`: `a_bar = (E d_bar) b^T`, `b_bar = a^T (E d_bar)`",
    **dict.fromkeys(("bcoo_transpose", "bcoo_sort_indices", "bcoo_sum_duplicates"), REARRANGED),
    "bcoo_spdot_general": "`d' = A(d, e)`: `d_dot' = A(d_dot, e) + A(d, e_dot)`",
    "spsolve": SOLVED,
}

# ---- the page ------------------------------------------------------------------------------------

ROOMS: dict[str, tuple[str, str, dict[str, str]]] = {
    "derivatives.elementwise": (
        "Element by element",
        "The Jacobian is diagonal, hence its own transpose: `z_dot = sum_i x_i_dot dz/dx_i`, "
        "`x_i_bar = z_bar dz/dx_i`.",
        ELEMENTWISE,
    ),
    "derivatives.shape": (
        "Shapes",
        "Elements only move. The transpose puts each back to where it came from, adds up copies, "
        "and puts 0 where nothing was read.",
        SHAPE,
    ),
    "derivatives.reduction": (
        "Reductions",
        "The transpose of a sum is a broadcast. The tangent of an extremum is the mean over the "
        "elements that attain it. The tangents of a cumulative operation follow a linear "
        "recurrence.",
        REDUCTION,
    ),
    "derivatives.contraction": (
        "Products",
        "Bilinear: the transpose in one factor is a product of the cotangent with the other.",
        CONTRACTION,
    ),
    "derivatives.indexing": (
        "Indices",
        "Reading at computed indices and adding there are transposes of each other. The indices "
        "have no derivative.",
        INDEXING,
    ),
    "derivatives.windows": (
        "Windows",
        "A sum over windows is a convolution with ones. An extremum selects one element of each "
        "window, and its transpose adds to the place of that element.",
        WINDOWS,
    ),
    "derivatives.sorting": (
        "Sorting",
        "The permutation is constant nearby, so it permutes the tangents as it does the primals.",
        SORTING,
    ),
    "derivatives.special": (
        "Error functions and Bessel functions",
        "The derivative of an integral is its integrand; Bessel functions have a recurrence.",
        SPECIAL,
    ),
    "derivatives.zeta": (
        "The zeta function, and the gamma function's logarithm",
        "`psi_m' = psi_(m+1)`, and the zeta function gives the values of all `psi_m`.",
        ZETA,
    ),
    "derivatives.incomplete": (
        "Incomplete gamma and beta functions",
        "With respect to the upper end of an integral the derivative is the density there. With "
        "respect to a parameter it is the integral of the density's derivative, by the "
        "Gauss-Legendre rule.",
        INCOMPLETE,
    ),
    "derivatives.linalg": (
        "Systems and triangular factors",
        "Differentiate the equation that defines the result, and solve for its tangent. "
        "`Phi(X)` is the lower triangle of `X` with half of its diagonal, so that "
        "`X = Phi(X) + Phi(X)^H` if `X` is Hermitian.",
        LINALG,
    ),
    "derivatives.orthogonal": (
        "Orthogonal factors",
        "Since `Q^H Q = 1`, the motion `Q^H Q_dot` is skew-Hermitian, and its lower triangle "
        "determines it.",
        ORTHOGONAL,
    ),
    "derivatives.spectral": (
        "Eigenvalues and singular values",
        "The motion of the vectors is a quotient by the gaps between the values; NaN where a gap "
        "is zero.",
        SPECTRAL,
    ),
    "derivatives.fft": (
        "Fourier transforms",
        "Linear. The matrix of the transform and its inverse are symmetric.",
        FFT,
    ),
    "derivatives.collectives": (
        "Devices",
        "A sum over the devices `d` of a mesh and a copy to each device are transposes of each "
        "other. `x_e` is the value on device `e`; a name without an index is the same on all.",
        COLLECTIVES,
    ),
    "derivatives.random": (
        "Random bits",
        "Bits have no derivative. A sample has one with respect to the parameters of its "
        "distribution, by the arithmetic that makes it from the bits.",
        RANDOM_BITS,
    ),
    "derivatives.effects": (
        "Effects",
        "An operation that serves its effect has no derivative. Nobody knows the derivative of a "
        "function outside JAX.",
        EFFECTS,
    ),
    "derivatives.sparse": (
        "Sparse arrays",
        "A sparse array stores the values in some places: `E d` puts the values `d` into their "
        "places, and `E^T a` reads them there. The places have no derivative.",
        SPARSE,
    ),
    "derivatives.staging": (
        "Staging",
        "An identity that always makes an equation.",
        {"stage": SAME},
    ),
    "control_flow": (
        "Functions inside functions",
        "A call, a branch or a loop carries jaxprs. Its derivative carries the forward, linear or "
        "transposed jaxprs: the derivative of a loop is a loop.",
        CONTROL_FLOW,
    ),
}

UNTIL_10 = {"call", "closed_call", "shard_alike"}
"""Primitives that have a rule with JAX 0.10 only."""

SINCE_11 = {
    "relayout",
    "get_global",
    "log2",
    "one_minus_square",
    "pbroadcast_dynamic",
    "polynomial",
    "program_order",
}
"""Primitives that have a rule since JAX 0.11."""
