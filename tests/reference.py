"""Every block of DeepSeek-VL2 once more, in plain loops straight from the papers' equations.

This is the oracle of the tests. It shares no code with minivl2: tensors are only boxes for numbers here, nothing is
batched, nothing is transposed, and every index is written out. It is slow, and it is meant to be read beside the paper.

The weights `w` of a block are its `state_dict()`. Letters are those of the legend in minivl2/config.py:
    B batch   T tokens   S all tokens   D width   H heads   d head width
    C latent   N content part   R rotary part   v value part   E experts   K experts chosen per token
"""

import math

import torch

# ---------------------------------------------------------------------------------------------- small parts


def part(w, prefix):
    """The weights of a part: part(w, "attn") holds "q_proj.weight" where w holds "attn.q_proj.weight"."""
    return {name[len(prefix) + 1:]: t for name, t in w.items() if name.startswith(prefix + ".")}


def linear(w, name, x):
    """A matrix times one vector, and a bias if there is one."""
    y = w[name + ".weight"] @ x
    return y + w[name + ".bias"] if name + ".bias" in w else y


def rms_norm(x, weight, eps):
    mean_square = sum(float(n) ** 2 for n in x) / len(x)
    return torch.stack([n / math.sqrt(mean_square + eps) * g for n, g in zip(x, weight, strict=True)])


def layer_norm(x, weight, bias, eps=1e-6):
    mean = sum(float(n) for n in x) / len(x)
    variance = sum((float(n) - mean) ** 2 for n in x) / len(x)
    return torch.stack([(n - mean) / math.sqrt(variance + eps) * g + b for n, g, b in zip(x, weight, bias, strict=True)])


def softmax(numbers):
    largest = max(numbers)
    powers = [math.exp(n - largest) for n in numbers]
    return [p / sum(powers) for p in powers]


def sigmoid(n):
    return 1 / (1 + math.exp(-n))


def silu(n):
    return n * sigmoid(n)


def gelu_exact(n):
    return n * 0.5 * (1 + math.erf(n / math.sqrt(2)))


def gelu_tanh(n):
    return 0.5 * n * (1 + math.tanh(math.sqrt(2 / math.pi) * (n + 0.044715 * n**3)))


def each(function, x):
    return torch.tensor([function(float(n)) for n in x], dtype=x.dtype)


# ---------------------------------------------------------------------------------------------- tiling


def effective_resolution(image, candidate):
    """How many of the image's own pixels can be told apart once it is scaled to fit."""
    (width, height), (W, H) = image, candidate
    scale = min(W / width, H / height)
    return min(int(width * scale) * int(height * scale), width * height)


def choose_resolution(image, candidates):
    """Most effective pixels; among equals the least waste; among equals the earliest."""
    best, best_kept, best_waste = None, -1, 0
    for candidate in candidates:
        kept = effective_resolution(image, candidate)
        waste = candidate[0] * candidate[1] - kept
        if kept > best_kept or (kept == best_kept and waste < best_waste):
            best, best_kept, best_waste = candidate, kept, waste
    return best


# ---------------------------------------------------------------------------------------------- vision tower


def patches(tile, size):
    """One tile (3, height, width) -> its patches in reading order. What does not fill a patch is dropped."""
    _, height, width = tile.shape
    return [
        tile[:, row * size:(row + 1) * size, column * size:(column + 1) * size]
        for row in range(height // size) for column in range(width // size)
    ]


def vision_attention(x, w, heads):
    """Softmax attention without a mask, head by head. `qkv` stores all queries, then all keys, then all values."""
    P, W = x.shape
    d = W // heads
    qkv = [linear(w, "qkv", row) for row in x]
    out = []
    for i in range(P):
        joined = []
        for h in range(heads):
            q = qkv[i][h * d:(h + 1) * d]
            keys = [qkv[j][W + h * d:W + (h + 1) * d] for j in range(P)]
            values = [qkv[j][2 * W + h * d:2 * W + (h + 1) * d] for j in range(P)]
            weights = softmax([float(q @ k) / math.sqrt(d) for k in keys])
            joined.append(sum(a * value for a, value in zip(weights, values, strict=True)))
        out.append(linear(w, "proj", torch.cat(joined)))
    return torch.stack(out)


def vision_block(x, w, heads):
    """ViT, Eqs. 2-3: x + attention(norm(x)), then x + mlp(norm(x))."""
    normed = torch.stack([layer_norm(row, w["norm1.weight"], w["norm1.bias"]) for row in x])
    x = x + vision_attention(normed, part(w, "attn"), heads)
    out = []
    for row in x:
        inner = linear(w, "mlp.fc1", layer_norm(row, w["norm2.weight"], w["norm2.bias"]))
        out.append(row + linear(w, "mlp.fc2", each(gelu_tanh, inner)))
    return torch.stack(out)


def vision_tower(tile, w, patch_size, heads, layers):
    """ViT, Eqs. 1-4, for one tile: a vector for every patch."""
    kernel, bias = w["patch_embed.weight"], w["patch_embed.bias"]
    x = torch.stack([
        torch.stack([(filter_ * patch).sum() for filter_ in kernel]) + bias + position
        for patch, position in zip(patches(tile, patch_size), w["pos_embed"][0], strict=True)
    ])
    for i in range(layers):
        x = vision_block(x, part(w, f"blocks.{i}"), heads)
    return torch.stack([layer_norm(row, w["norm.weight"], w["norm.bias"]) for row in x])


# ---------------------------------------------------------------------------------------------- projector, layout


def pixel_shuffle(x, r=2):
    """(M, P, W) -> (M, P', W*r*r). Outside the image, right and below, there are zeros."""
    M, P, W = x.shape
    side = math.isqrt(P)
    blocks = math.ceil(side / r)
    out = x.new_zeros(M, blocks * blocks, W * r * r)
    for m in range(M):
        for row in range(blocks):
            for column in range(blocks):
                for channel in range(W):
                    for dy in range(r):
                        for dx in range(r):
                            y, x_ = row * r + dy, column * r + dx
                            if y < side and x_ < side:
                                place = channel * r * r + dy * r + dx       # channels are outermost
                                out[m, row * blocks + column, place] = x[m, y * side + x_, channel]
    return out


def projector(patch_vectors, w, r=2):
    """Linear, GELU, linear, ... for every 2 x 2 block. Modules 0, 2, 4, ... of the sequence are the linear ones."""
    linears = sorted({int(name.split(".")[1]) for name in w})
    out = []
    for tile in pixel_shuffle(patch_vectors, r):
        row = []
        for x in tile:
            for i in linears:
                x = each(gelu_exact, x) if i else x
                x = linear(w, f"layers.{i}", x)
            row.append(x)
        out.append(torch.stack(row))
    return torch.stack(out)


def visual_token_count(w, h, side=14):
    count = 0
    for _ in range(side):
        count += side + 1           # a row of the global view and its newline
    count += 1                      # the separator
    for _ in range(side * h):
        count += side * w + 1       # a row across all tiles and its newline
    return count


def lay_out(tiles, grid, newline, separator):
    """Figure 3 of the DeepSeek-VL2 paper, one token after another."""
    w, h = grid
    side = math.isqrt(tiles.shape[1])
    line = []
    for y in range(side):
        for x in range(side):
            line.append(tiles[0, y * side + x])
        line.append(newline)
    line.append(separator)
    for y in range(h * side):
        for x in range(w * side):
            tile = (y // side) * w + x // side
            line.append(tiles[1 + tile, (y % side) * side + x % side])
        line.append(newline)
    return torch.stack(line)


# ---------------------------------------------------------------------------------------------- rotary embedding


def rope(x, position, base, interleaved):
    """RoFormer, Eq. 34: pair i of a vector turns by position * base^(-2i/d). Two conventions of what a pair is."""
    d = len(x)
    turned = x.clone()
    for i in range(d // 2):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + d // 2)
        angle = int(position) * base ** (-2 * i / d)
        turned[a] = x[a] * math.cos(angle) - x[b] * math.sin(angle)
        turned[b] = x[a] * math.sin(angle) + x[b] * math.cos(angle)
    return turned


def cos_and_sin(positions, width, base, dtype=torch.float64):
    """The angles' cosine and sine as minivl2's attention wants them, (B, 1, T, width/2), so that it is tested alone."""
    angles = [[[[int(p) * base ** (-2 * i / width) for i in range(width // 2)] for p in row]] for row in positions]
    angles = torch.tensor(angles, dtype=torch.float64)
    return angles.cos().to(dtype), angles.sin().to(dtype)


# ---------------------------------------------------------------------------------------------- attention


def positions(real):
    """The position of a token is the number of real tokens before it. (Padding is wherever; it is never looked at.)"""
    return torch.tensor([[sum(bool(r) for r in row[:t]) for t in range(len(row))] for row in real])


def seen(real):
    """[b][t][s]: may token t of sequence b look at token s? At real ones up to itself, and always at itself."""
    return [[[t == s or (s < t and bool(row[s])) for s in range(len(row))] for t in range(len(row))] for row in real]


def attend(q, keys, values, scale, may_see):
    """One query of one head: softmax(q k / sqrt(d)) v over the tokens that may be seen."""
    visible = [s for s in range(len(keys)) if may_see[s]]
    weights = softmax([float(q @ keys[s]) * scale for s in visible])
    return sum(a * values[s] for a, s in zip(weights, visible, strict=True))


def multi_head_attention(x, w, heads, key_heads, positions, may_see, base):
    """Attention Is All You Need, section 3.2. Head h reads key head h // (heads / key_heads)."""
    B, T, _ = x.shape
    d = w["q_proj.weight"].shape[0] // heads
    out = torch.empty_like(x)
    for b in range(B):
        q = [linear(w, "q_proj", x[b, t]) for t in range(T)]
        k = [linear(w, "k_proj", x[b, t]) for t in range(T)]
        v = [linear(w, "v_proj", x[b, t]) for t in range(T)]

        def head(vectors, h):
            return [vector[h * d:(h + 1) * d] for vector in vectors]

        def turned(vectors, row):
            return [rope(vector, row[t], base, interleaved=False) for t, vector in enumerate(vectors)]

        mixed = [[None] * heads for _ in range(T)]
        for h in range(heads):
            shared = h // (heads // key_heads)
            queries, keys = turned(head(q, h), positions[b]), turned(head(k, shared), positions[b])
            for t in range(T):
                mixed[t][h] = attend(queries[t], keys, head(v, shared), d**-0.5, may_see[b][t])
        for t in range(T):
            out[b, t] = linear(w, "o_proj", torch.cat(mixed[t]))
    return out


def latent_attention(x, w, H, C, N, R, v, positions, may_see, base, eps):
    """DeepSeek-V2, Eqs. 9-19, with a key and a value built for every token and head."""
    B, T, _ = x.shape
    out = torch.empty_like(x)
    for b in range(B):
        queries, keys, values = [], [], []          # each [t][h]
        for t in range(T):
            if "q_proj.weight" in w:
                q = linear(w, "q_proj", x[b, t])
            else:
                c_q = rms_norm(linear(w, "q_down", x[b, t]), w["q_norm.weight"], eps)           # Eq. 12
                q = linear(w, "q_up", c_q)                                                      # Eqs. 13, 14
            down = linear(w, "kv_down", x[b, t])
            c_kv = rms_norm(down[:C], w["kv_norm.weight"], eps)                                 # Eq. 9
            k_rope = rope(down[C:], positions[b][t], base, interleaved=True)                    # Eq. 15
            up = linear(w, "kv_up", c_kv)                                                       # Eqs. 10, 11
            queries.append([]), keys.append([]), values.append([])
            for h in range(H):
                of_head = q[h * (N + R):(h + 1) * (N + R)]
                q_rope = rope(of_head[N:], positions[b][t], base, interleaved=True)             # Eq. 14
                k_and_v = up[h * (N + v):(h + 1) * (N + v)]
                queries[t].append(torch.cat((of_head[:N], q_rope)))                             # Eq. 16
                keys[t].append(torch.cat((k_and_v[:N], k_rope)))                                # Eq. 17
                values[t].append(k_and_v[N:])
        for t in range(T):
            mixed = [
                attend(queries[t][h], [k[h] for k in keys], [u[h] for u in values], (N + R) ** -0.5, may_see[b][t])
                for h in range(H)                                                               # Eq. 18
            ]
            out[b, t] = linear(w, "o_proj", torch.cat(mixed))                                   # Eq. 19
    return out


# ---------------------------------------------------------------------------------------------- experts


def swiglu(x, w):
    """down(silu(gate x) * up x) for one vector."""
    return linear(w, "down_proj", each(silu, linear(w, "gate_proj", x)) * linear(w, "up_proj", x))


def gate(x, weight, K, scoring="softmax", method="greedy", bias=None, groups=1, kept_groups=1, normalise=False, scale=1.0):
    """One token: ({expert: weight} of the chosen K, scores of all E).

    DeepSeek-V2, section 2.2.2 (groups); DeepSeek-V3, Eqs. 12-16 (sigmoid and bias).
    """
    E = len(weight)
    logits = [float(row @ x) for row in weight]
    scores = softmax(logits) if scoring == "softmax" else [sigmoid(n) for n in logits]
    rank = list(scores)                         # what experts are chosen by
    if method == "noaux_tc":
        rank = [score + float(b) for score, b in zip(scores, bias, strict=True)]
    allowed = list(range(E))
    if method != "greedy":
        size = E // groups
        of_group = [sorted((rank[e] for e in range(g * size, (g + 1) * size)), reverse=True) for g in range(groups)]
        worth = [best[0] if method == "group_limited_greedy" else best[0] + best[1] for best in of_group]
        staying = sorted(range(groups), key=lambda g: -worth[g])[:kept_groups]
        allowed = [e for e in range(E) if e // size in staying]
    chosen = sorted(allowed, key=lambda e: -rank[e])[:K]
    total = sum(scores[e] for e in chosen) + 1e-20 if normalise and K > 1 else 1.0
    return {e: scores[e] / total * scale for e in chosen}, scores      # the scores themselves, never the rank


def mixture_of_experts(x, w, **how):
    """DeepSeekMoE, Eqs. 9-11, for one token: the chosen experts by their weights, and the shared ones as they are."""
    weights, _ = gate(x, w["gate.weight"], bias=w.get("gate.bias"), **how)
    y = torch.zeros_like(x)
    for e, weight in weights.items():
        y = y + weight * swiglu(x, part(w, f"experts.{e}"))
    return y + swiglu(x, part(w, "shared")) if part(w, "shared") else y


def balance_loss(scores, chosen, real, per_sequence=True):
    """DeepSeek-V2, Eqs. 23-25. scores [b][t][e], chosen [b][t] a list of experts, real [b][t]."""
    sequences = list(zip(scores, chosen, real, strict=True))
    if not per_sequence:        # the whole batch as one long sequence
        sequences = [tuple([item for sequence in column for item in sequence] for column in zip(*sequences, strict=True))]
    losses = []
    for s, c, r in sequences:
        tokens = [t for t in range(len(r)) if r[t]]
        E, K = len(s[0]), len(c[0])
        loss = 0.0
        for e in range(E):
            f = sum(e in c[t] for t in tokens) * E / (K * max(1, len(tokens)))
            P = sum(float(s[t][e]) for t in tokens) / max(1, len(tokens))
            loss += f * P
        losses.append(loss)
    return sum(losses) / len(losses)


def step_bias(bias, chosen, step):
    """Loss-free balancing, arXiv:2408.15664, algorithm 1: b += u * sign(mean load - own load)."""
    load = [sum(e == int(c) for c in chosen) for e in range(len(bias))]
    mean = sum(load) / len(load)
    return [float(b) + step * ((n < mean) - (n > mean)) for b, n in zip(bias, load, strict=True)]


# ---------------------------------------------------------------------------------------------- decoder


def decoder_layer(x, w, attention, how_to_choose, eps):
    """x + attention(norm(x)), then x + mlp(norm(x)). A layer without a gate has a dense MLP."""
    B, T, _ = x.shape
    normed = torch.stack([torch.stack([rms_norm(x[b, t], w["attn_norm.weight"], eps) for t in range(T)]) for b in range(B)])
    x = x + attention(normed, part(w, "attn"))
    out, mlp = x.clone(), part(w, "mlp")
    for b in range(B):
        for t in range(T):
            n = rms_norm(x[b, t], w["mlp_norm.weight"], eps)
            out[b, t] += mixture_of_experts(n, mlp, **how_to_choose) if "gate.weight" in mlp else swiglu(n, mlp)
    return out


def decoder(x, w, cfg, real):
    """The whole decoder, from vectors to the final norm. cfg: the published language_config, as an object."""
    place, may_see = positions(real), seen(real)

    def attention(x, w):
        if cfg.use_mla:
            return latent_attention(x, w, cfg.num_attention_heads, cfg.kv_lora_rank, cfg.qk_nope_head_dim,
                                    cfg.qk_rope_head_dim, cfg.v_head_dim, place, may_see, cfg.rope_theta, cfg.rms_norm_eps)
        return multi_head_attention(
            x, w, cfg.num_attention_heads, cfg.num_key_value_heads, place, may_see, cfg.rope_theta)

    for i in range(cfg.num_hidden_layers):
        x = decoder_layer(x, part(w, f"layers.{i}"), attention, choosing(cfg), cfg.rms_norm_eps)
    return torch.stack([torch.stack([rms_norm(t, w["norm.weight"], cfg.rms_norm_eps) for t in row]) for row in x])


def choosing(cfg):
    """How the gate of this configuration chooses, in the words of `gate` above."""
    return {
        "K": cfg.num_experts_per_tok, "scoring": cfg.scoring_func, "method": cfg.topk_method, "groups": cfg.n_group,
        "kept_groups": cfg.topk_group, "normalise": cfg.norm_topk_prob, "scale": cfg.routed_scaling_factor,
    }


def cross_entropy(logits, labels, real, ignored=-100):
    """Each real token predicts the label of the next. Mean over all labels that are not ignored. logits (B, T, V)"""
    losses = []
    for row, wanted, is_real in zip(logits, labels, real, strict=True):
        for t in range(1, len(wanted)):
            if wanted[t] != ignored and is_real[t - 1]:
                losses.append(-math.log(softmax([float(n) for n in row[t - 1]])[int(wanted[t])]))
    return sum(losses) / len(losses)


# ---------------------------------------------------------------------------------------------- conversation


def conversation(messages, training=False):
    """The whole conversation as one string, its special tokens spelled out."""
    text = "<｜begin▁of▁sentence｜>"
    for i, message in enumerate(messages):
        said = message["content"].strip()
        if message["role"] == "system":
            text += said
        elif message["role"] in ("user", "<|User|>"):
            text += "<|User|>: " + said + "\n\n<|Assistant|>:"
        else:
            text += said
            if training or i < len(messages) - 1:
                text += "<｜end▁of▁sentence｜>"
    return text
