#!/usr/bin/env python3
"""Draws what `mixse bench --growth --json` measured as one SVG.

  mixse bench --growth --json > growth.json
  python3 bench/growth.py growth.json > docs/growth.svg
"""
import json, math, sys

PANEL, GAP, LEFT, TOP, HEIGHT = 300, 110, 80, 50, 220


def nice(low, high):
    """Powers of two (or of ten) between the values, for a logarithmic axis."""
    return [2 ** i for i in range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)]


def label(value):
    return f"{value:g}" if value < 10000 else f"{value / 1000:g}k"


def panel(number, title, x_title, y_title, xs, lines):
    """A chart with two logarithmic axes: `lines` are (name, colour, ys)."""
    x0 = LEFT + (number % 2) * (PANEL + GAP)
    y0 = TOP + (number // 2) * (HEIGHT + GAP)
    values = [y for _, _, ys in lines for y in ys]
    x_ticks, y_ticks = nice(min(xs), max(xs)), nice(min(values), max(values))
    while len(y_ticks) > 8:
        y_ticks = y_ticks[::2] + ([y_ticks[-1] * 2] if len(y_ticks) % 2 == 0 else [])
    span = lambda ticks: math.log2(ticks[-1] / ticks[0]) or 1
    at_x = lambda x: x0 + PANEL * math.log2(x / x_ticks[0]) / span(x_ticks)
    at_y = lambda y: y0 + HEIGHT - HEIGHT * math.log2(y / y_ticks[0]) / span(y_ticks)
    out = [f'<text x="{x0 + PANEL / 2}" y="{y0 - 12}" text-anchor="middle" font-weight="bold">{title}</text>']
    for x in x_ticks:
        out.append(f'<path d="M{at_x(x):.1f} {y0}v{HEIGHT}" stroke="#ddd"/>')
        out.append(f'<text x="{at_x(x):.1f}" y="{y0 + HEIGHT + 16}" text-anchor="middle">{label(x)}</text>')
    for y in y_ticks:
        out.append(f'<path d="M{x0} {at_y(y):.1f}h{PANEL}" stroke="#ddd"/>')
        out.append(f'<text x="{x0 - 6}" y="{at_y(y) + 4:.1f}" text-anchor="end">{label(y)}</text>')
    out.append(f'<text x="{x0 + PANEL / 2}" y="{y0 + HEIGHT + 34}" text-anchor="middle">{x_title}</text>')
    out.append(f'<text transform="translate({x0 - 48} {y0 + HEIGHT / 2}) rotate(-90)" text-anchor="middle">{y_title}</text>')
    for i, (name, colour, ys) in enumerate(lines):
        points = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in zip(xs, ys))
        out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="{colour}"/>' for x, y in zip(xs, ys)]
        if len(lines) > 1:
            out.append(f'<text x="{x0 + 8}" y="{y0 + 16 + 15 * i}" fill="{colour}">{name}</text>')
    return out


def main():
    report = json.load(open(sys.argv[1]))
    rows, lengths = report["growth"]["rows"], report["growth"]["lengths"]
    of = lambda points, key: [point[key] for point in points]
    live = [point["rows"] * (point["prompt"] + point["generated"]) for point in rows]
    tokens = [point["prompt"] + point["generated"] for point in lengths]
    blue, red = "#2563a8", "#b8442c"
    body = panel(0, "Generation by rows", "rows", "tokens/s", of(rows, "rows"),
                 [("", blue, of(rows, "generate_tokens_per_s"))])
    body += panel(1, "Memory by live tokens", "rows x tokens", "MB", live,
                  [("keys and values", blue, of(rows, "cache_mb")), ("all above the model", red, of(rows, "working_mb"))])
    body += panel(2, "Reading a prompt by length", "tokens", "tokens/s", of(lengths, "prompt"),
                  [("", blue, of(lengths, "prefill_tokens_per_s"))])
    body += panel(3, "Time of a token by length", "tokens before it", "ms", of(lengths, "prompt"),
                  [("", blue, of(lengths, "step_ms"))])
    width, height = LEFT + 2 * PANEL + GAP + 30, TOP + 2 * (HEIGHT + GAP) - 40
    machine = report["machine"]["processor"]
    print(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
          f'font-family="sans-serif" font-size="12"><title>Growth of time and memory on {machine}</title>'
          f'<rect width="100%" height="100%" fill="white"/>')
    print("\n".join(body))
    print("</svg>")


main()
