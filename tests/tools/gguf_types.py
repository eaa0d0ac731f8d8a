"""Block types of GGUF for the tests: simple quantisers, and decoders element by element from the
formats' descriptions. Nothing here is shared with what Moraine reads them with.

quantise(kind, floats) -> bytes; decode(kind, data) -> list of floats (exact or rounded to float32 once).
"""
import math
import struct

(F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, BF16,
 TQ1_0, TQ2_0, MXFP4) = 0, 1, 2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 20, 23, 30, 34, 35, 39
BLOCK = {F32: (1, 4), F16: (1, 2), BF16: (1, 2), Q4_0: (32, 18), Q4_1: (32, 20), Q5_0: (32, 22),
         Q5_1: (32, 24), Q8_0: (32, 34), Q2_K: (256, 84), Q3_K: (256, 110), Q4_K: (256, 144),
         Q5_K: (256, 176), Q6_K: (256, 210), IQ4_NL: (32, 18), IQ4_XS: (256, 136),
         TQ1_0: (256, 54), TQ2_0: (256, 66), MXFP4: (32, 17)}
# Bytes of digits in a block of TQ1_0: first byte, how many, digits in each, first element.
TRITS = ((0, 32, 5, 0), (32, 16, 5, 160), (48, 4, 4, 240))
IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
E2M1 += tuple(-x for x in E2M1)


def half(value):
    """Rounded to f16."""
    return struct.unpack("<e", struct.pack("<e", value))[0]


def single(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def nearest(x, low, high):
    return max(low, min(high, math.floor(x + 0.5)))


def ratio(a, b):
    return a / b if b else 0.0


def nibbles(codes):
    """32 codes in 16 bytes, element i beside 16 + i."""
    return bytes(codes[i] | codes[16 + i] << 4 for i in range(16))


def fifths(codes):
    return struct.pack("<I", sum((code >> 4) << i for i, code in enumerate(codes)))


def symmetric(block, steps, low, high):
    """Scale, and codes from low to high, the extreme value at -steps."""
    extreme = max(block, key=abs)
    scale = half(extreme / -steps)
    return scale, [nearest(ratio(x, scale), low, high) for x in block]


def affine(block, steps):
    low = half(min(block))
    scale = half((max(block) - low) / steps)
    return scale, low, [nearest(ratio(x - low, scale), 0, steps) for x in block]


def in_table(x, table):
    return min(range(16), key=lambda i: abs(table[i] - x))


def quantise_32(kind, block):
    if kind == Q4_0:
        scale, codes = symmetric(block, 8, -8, 7)
        return struct.pack("<e", scale) + nibbles([c + 8 for c in codes])
    if kind == Q5_0:
        scale, codes = symmetric(block, 16, -16, 15)
        codes = [c + 16 for c in codes]
        return struct.pack("<e", scale) + fifths(codes) + nibbles([c & 15 for c in codes])
    if kind == Q8_0:
        scale, codes = symmetric(block, 127, -127, 127)
        return struct.pack("<e32b", scale, *codes)
    if kind in (Q4_1, Q5_1):
        scale, low, codes = affine(block, 15 if kind == Q4_1 else 31)
        top = fifths(codes) if kind == Q5_1 else b""
        return struct.pack("<ee", scale, low) + top + nibbles([c & 15 for c in codes])
    if kind == IQ4_NL:
        scale = half(max(block, key=abs) / -127)
        return struct.pack("<e", scale) + nibbles([in_table(ratio(x, scale), IQ4) for x in block])
    assert kind == MXFP4
    largest = max(map(abs, block))
    exponent = math.frexp(largest)[1] - 3 if largest else -127
    codes = [in_table(x * 2.0 ** -exponent, E2M1) for x in block]
    return bytes([exponent + 127]) + nibbles(codes)


def sub_scales(values, limit):
    """A common f16 scale and integers up to limit that stand for the values."""
    common = half(max(map(abs, values)) / limit)
    return common, [nearest(ratio(v, common), -limit, limit) for v in values]


def pack_pairs(scales, minima):
    """Eight pairs of six bits in 12 bytes, as Q4_K and Q5_K have them."""
    first = [scales[j] | (scales[j + 4] >> 4) << 6 for j in range(4)]
    second = [minima[j] | (minima[j + 4] >> 4) << 6 for j in range(4)]
    third = [scales[j + 4] & 15 | (minima[j + 4] & 15) << 4 for j in range(4)]
    return bytes(first + second + third)


def two_bits(codes):
    """256 codes of two bits: of each 128, byte i has those of i, 32 + i, 64 + i and 96 + i."""
    return bytes(sum(codes[h * 128 + run * 32 + i] << run * 2 for run in range(4))
                 for h in range(2) for i in range(32))


def quantise_256(kind, block):
    if kind in (TQ1_0, TQ2_0):
        d = half(max(map(abs, block)))
        digits = [nearest(ratio(x, d), -1, 1) + 1 for x in block]
        if kind == TQ2_0:
            return two_bits(digits) + struct.pack("<e", d)
        # A number of five digits as a fraction of 256, rounded up.
        values = [sum(digits[first + p * count + i] * 3 ** (4 - p) for p in range(places))
                  for _, count, places, first in TRITS for i in range(count)]
        return bytes(-(-v * 256 // 243) for v in values) + struct.pack("<e", d)
    if kind in (Q4_K, Q5_K):
        steps = 15 if kind == Q4_K else 31
        subs = [block[j * 32:j * 32 + 32] for j in range(8)]
        lows = [min(0.0, min(sub)) for sub in subs]
        d, scales = sub_scales([(max(sub) - low) / steps for sub, low in zip(subs, lows)], 63)
        dmin, minima = sub_scales([-low for low in lows], 63)
        codes = [nearest(ratio(x + dmin * minima[j], d * scales[j]), 0, steps)
                 for j, sub in enumerate(subs) for x in sub]
        top = b""
        if kind == Q5_K:
            top = bytes(sum((codes[j * 32 + i] >> 4) << j for j in range(8)) for i in range(32))
        low = bytes(codes[j * 64 + i] & 15 | (codes[j * 64 + 32 + i] & 15) << 4
                    for j in range(4) for i in range(32))
        return struct.pack("<ee", d, dmin) + pack_pairs(scales, minima) + top + low
    if kind == IQ4_XS:
        d, scales = sub_scales([max(block[j * 32:j * 32 + 32], key=abs) / -127 for j in range(8)], 31)
        codes = [in_table(ratio(x, d * scales[i // 32]), IQ4) for i, x in enumerate(block)]
        high = sum(((s + 32) >> 4) << 2 * j for j, s in enumerate(scales))
        low = bytes((scales[2 * j] + 32) & 15 | ((scales[2 * j + 1] + 32) & 15) << 4
                    for j in range(4))
        return struct.pack("<eH", d, high) + low + b"".join(
            nibbles(codes[j * 32:j * 32 + 32]) for j in range(8))
    subs = [block[j * 16:j * 16 + 16] for j in range(16)]
    if kind == Q2_K:
        lows = [min(0.0, min(sub)) for sub in subs]
        d, scales = sub_scales([(max(sub) - low) / 3 for sub, low in zip(subs, lows)], 15)
        dmin, minima = sub_scales([-low for low in lows], 15)
        codes = [nearest(ratio(x + dmin * minima[j], d * scales[j]), 0, 3)
                 for j, sub in enumerate(subs) for x in sub]
        return (bytes(s | m << 4 for s, m in zip(scales, minima)) + two_bits(codes) +
                struct.pack("<ee", d, dmin))
    extremes = [max(sub, key=abs) for sub in subs]
    if kind == Q3_K:
        d, scales = sub_scales([e / -4 for e in extremes], 31)
        codes = [nearest(ratio(x, d * scales[i // 16]), -4, 3) + 4 for i, x in enumerate(block)]
        top = bytes(sum((codes[run * 32 + i] >> 2) << run for run in range(8)) for i in range(32))
        shifted = [s + 32 for s in scales]
        packed = [shifted[j] & 15 | (shifted[j + 8] & 15) << 4 for j in range(8)]
        packed += [sum((shifted[j + 4 * k] >> 4) << 2 * k for k in range(4)) for j in range(4)]
        return top + two_bits([c & 3 for c in codes]) + bytes(packed) + struct.pack("<e", d)
    assert kind == Q6_K
    d, scales = sub_scales([e / -32 for e in extremes], 127)
    codes = [nearest(ratio(x, d * scales[i // 16]), -32, 31) + 32 for i, x in enumerate(block)]
    low = bytes(codes[h * 128 + i] & 15 | (codes[h * 128 + 64 + i] & 15) << 4
                for h in range(2) for i in range(64))
    return low + two_bits([c >> 4 for c in codes]) + struct.pack("<16be", *scales, d)


def quantise(kind, floats):
    elements = BLOCK[kind][0]
    one = quantise_32 if elements == 32 else quantise_256
    return b"".join(one(kind, floats[at:at + elements]) for at in range(0, len(floats), elements))


def codes_of(data, at=0):
    """The 32 nibbles of 16 bytes."""
    return [data[at + i % 16] >> i // 16 * 4 & 15 for i in range(32)]


def decode_32(kind, b):
    nibble = codes_of(b, len(b) - 16) if kind != Q8_0 else []
    if kind == MXFP4:
        return [E2M1[n] * 2.0 ** (b[0] - 127) for n in nibble]
    d = struct.unpack_from("<e", b)[0]
    if kind == Q8_0:
        return [d * c for c in struct.unpack_from("<32b", b, 2)]
    if kind == IQ4_NL:
        return [d * IQ4[n] for n in nibble]
    if kind == Q4_0:
        return [d * (n - 8) for n in nibble]
    top = struct.unpack_from("<I", b, len(b) - 20)[0]
    five = [n | (top >> i & 1) << 4 for i, n in enumerate(nibble)]
    if kind == Q5_0:
        return [d * (c - 16) for c in five]
    m = struct.unpack_from("<e", b, 2)[0]
    return [single(d * c + m) for c in (five if kind == Q5_1 else nibble)]


def decode_256(kind, b):
    if kind in (Q4_K, Q5_K):
        d, dmin = struct.unpack_from("<ee", b)
        s = b[4:16]
        pairs = [(s[j] & 63, s[j + 4] & 63) for j in range(4)]
        pairs += [(s[8 + j] & 15 | s[j] >> 6 << 4, s[8 + j] >> 4 | s[4 + j] >> 6 << 4)
                  for j in range(4)]
        low, top = b[len(b) - 128:], b[16:48]
        values = []
        for i in range(256):
            j = i // 32
            code = low[j // 2 * 32 + i % 32] >> j % 2 * 4 & 15
            if kind == Q5_K:
                code |= (top[i % 32] >> j & 1) << 4
            values.append(single(d * pairs[j][0] * code - dmin * pairs[j][1]))
        return values
    if kind == IQ4_XS:
        d, high = struct.unpack_from("<eH", b)
        scales = [(b[4 + j // 2] >> j % 2 * 4 & 15 | (high >> 2 * j & 3) << 4) - 32
                  for j in range(8)]
        return [d * scales[j] * IQ4[n] for j in range(8) for n in codes_of(b, 8 + 16 * j)]
    if kind == TQ1_0:
        d, values = struct.unpack_from("<e", b, 52)[0], [0.0] * 256
        for at, count, places, first in TRITS:
            for i in range(count):
                # The number that was rounded up, then its digits.
                number = b[at + i] * 243 // 256
                for p in range(places):
                    values[first + p * count + i] = d * (number // 3 ** (4 - p) % 3 - 1)
        return values
    if kind == TQ2_0:
        d = struct.unpack_from("<e", b, 64)[0]
        return [d * ((b[i // 128 * 32 + i % 32] >> i // 32 % 4 * 2 & 3) - 1) for i in range(256)]
    two = 16 if kind == Q2_K else 32 if kind == Q3_K else 128
    pair = [b[two + i // 128 * 32 + i % 32] >> i // 32 % 4 * 2 & 3 for i in range(256)]
    if kind == Q2_K:
        d, dmin = struct.unpack_from("<ee", b, 80)
        return [single(d * (b[i // 16] & 15) * c - dmin * (b[i // 16] >> 4))
                for i, c in enumerate(pair)]
    if kind == Q3_K:
        d = struct.unpack_from("<e", b, 108)[0]
        scales = [(b[96 + j % 8] >> j // 8 * 4 & 15 | (b[104 + j % 4] >> j // 4 * 2 & 3) << 4) - 32
                  for j in range(16)]
        return [d * scales[i // 16] * (c + 4 * (b[i % 32] >> i // 32 & 1) - 4)
                for i, c in enumerate(pair)]
    d, scales = struct.unpack_from("<e", b, 208)[0], struct.unpack_from("<16b", b, 192)
    return [d * scales[i // 16] *
            ((b[i // 128 * 64 + i % 64] >> i % 128 // 64 * 4 & 15 | c << 4) - 32)
            for i, c in enumerate(pair)]


def decode(kind, data):
    elements, size = BLOCK[kind]
    one = decode_32 if elements == 32 else decode_256
    return [x for at in range(0, len(data), size) for x in one(kind, data[at:at + size])]
