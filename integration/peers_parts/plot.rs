//! A picture of a run: bars of requests per second and of CPU time per request, as multiples of `qemu-storage-daemon`'s.

use std::fmt::Write;

use super::rows::{Backend, Figure, Row};

/// Pixels of a bar and of the space around a group of three.
const BAR: f64 = 30.0;
const GAP: f64 = 40.0;
const GROUP: f64 = 3.0 * BAR + GAP;

/// Pixels of a panel's plot, and of what is above, below and beside it.
const HEIGHT: f64 = 220.0;
const ABOVE: f64 = 50.0;
const BELOW: f64 = 56.0;
const BESIDE: f64 = 50.0;
const HEAD: f64 = 66.0;

/// Colors by [`Backend`]: told apart in shades of gray, too.
const COLORS: [&str; Backend::ALL.len()] = ["#b0b0b0", "#6aa5e0", "#e8c468"];

/// What a panel shows: figure, title, and which goals stand in it.
const PANELS: [(Figure, &str, &str); 2] = [
    (Figure::Iops, "Requests per second, as a multiple of qemu-storage-daemon (more is better)", "IOPS"),
    (Figure::Cpu, "CPU time per request, as a multiple of qemu-storage-daemon (less is better)", "CPU/IO"),
];

/// The picture as SVG.
#[must_use]
pub fn svg(rows: &[Row], subtitle: &str) -> String {
    let width = 2.0 * BESIDE + GROUP * float(rows.len());
    let panel = ABOVE + HEIGHT + BELOW;
    let height = HEAD + panel * float(PANELS.len());
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut out, BESIDE, 24.0, "start", 15, "spanblk and its peers");
    text(&mut out, BESIDE, 42.0, "start", 11, subtitle);
    let mut x = BESIDE;
    for backend in Backend::ALL {
        rect(&mut out, x, 50.0, 10.0, 10.0, COLORS[backend as usize]);
        text(&mut out, x + 14.0, 59.0, "start", 11, backend.name());
        x += 160.0;
    }
    rule(&mut out, x, x + 14.0, 55.0, "#c00000", 2.0);
    text(&mut out, x + 18.0, 59.0, "start", 11, "goal");
    for (index, (figure, title, goal)) in PANELS.into_iter().enumerate() {
        let top = HEAD + panel * float(index);
        text(&mut out, BESIDE, top + 28.0, "start", 13, title);
        draw(&mut out, rows, figure, goal, top + ABOVE, width);
    }
    out.push_str("</svg>\n");
    out
}

/// One panel, whose plot begins at `top`.
fn draw(out: &mut String, rows: &[Row], figure: Figure, goal: &str, top: f64, width: f64) {
    let all = rows.iter().flat_map(|row| Backend::ALL.map(|backend| row.ratio(backend, figure)));
    let most = all.filter(|ratio| ratio.is_finite()).fold(1.2, f64::max).min(8.0) * 1.05;
    let y = |ratio: f64| top + HEIGHT * (1.0 - ratio.min(most) / most);
    let step = if most > 3.0 { 1.0 } else { 0.5 };
    let mut line = 0.0;
    while line <= most {
        rule(out, BESIDE, width - BESIDE, y(line), if line == 1.0 { "#606060" } else { "#dddddd" }, 1.0);
        text(out, BESIDE - 6.0, y(line) + 4.0, "end", 11, &format!("{line:.1}"));
        line += step;
    }
    for (index, row) in rows.iter().enumerate() {
        let left = BESIDE + GROUP * float(index) + GAP / 2.0;
        for backend in Backend::ALL {
            let ratio = row.ratio(backend, figure);
            let x = left + BAR * float(backend as usize);
            if ratio.is_finite() {
                rect(out, x, y(ratio), BAR - 2.0, y(0.0) - y(ratio), COLORS[backend as usize]);
                // At the foot of the bar, where no goal is.
                text(out, x + BAR / 2.0 - 1.0, y(0.0) - 5.0, "middle", 11, &format!("{ratio:.2}"));
            }
        }
        for bound in row.goals().iter().filter(|reached| reached.what == goal).map(|reached| reached.bound) {
            let x = left + BAR * float(Backend::Spanblk as usize);
            rule(out, x - 2.0, x + BAR, y(bound), "#c00000", 2.0);
        }
        let middle = left + 1.5 * BAR;
        let (what, depth) = row.workload.name.split_once(" depth").unwrap_or((row.workload.name, ""));
        text(out, middle, y(0.0) + 16.0, "middle", 11, what);
        text(out, middle, y(0.0) + 30.0, "middle", 11, &format!("depth{depth}"));
        text(out, middle, y(0.0) + 44.0, "middle", 11, row.kind.name());
    }
}

fn rect(out: &mut String, x: f64, y: f64, width: f64, height: f64, color: &str) {
    let _ =
        writeln!(out, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{color}\"/>");
}

fn rule(out: &mut String, from: f64, to: f64, y: f64, color: &str, width: f64) {
    let _ = writeln!(
        out,
        "<path d=\"M {from:.1} {y:.1} H {to:.1}\" stroke=\"{color}\" stroke-width=\"{width}\" fill=\"none\"/>"
    );
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, size: u32, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ =
        writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{text}</text>");
}

#[allow(clippy::cast_precision_loss, reason = "a handful of rows")]
fn float(count: usize) -> f64 {
    count as f64
}
