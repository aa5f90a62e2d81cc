//! The table as a picture: for each column a bar of each strategy, with how much the seeds differ.

use std::fmt::Write;

use super::report::Report;
use super::tally::Figures;

/// Pixels of a bar, of the space between two panels, of a panel's plot, and of what is around.
const BAR: f64 = 34.0;
const GAP: f64 = 36.0;
const HEIGHT: f64 = 180.0;
const TOP: f64 = 76.0;
const BELOW: f64 = 30.0;
const BESIDE: f64 = 30.0;

/// Colors by strategy: told apart in shades of gray, too.
const COLORS: [&str; 4] = ["#b8b8b8", "#6aa5e0", "#e8c468", "#2f6f4f"];

/// A column: title, its value, and how it is written.
type Panel = (&'static str, fn(&Figures) -> f64, fn(f64) -> String);

const PANELS: [Panel; 5] = [
    ("imbalance, points", |f| 100.0 * f.imbalance, |value| format!("{value:.1}")),
    ("p99 proxy, x target", |f| f.p99, |value| format!("{value:.2}")),
    ("VHDs that fit, %", |f| 100.0 * f.fit, |value| format!("{value:.0}")),
    ("VMs touched by a disk", |f| f.touched, |value| format!("{value:.1}")),
    ("moved a day, %", |f| 100.0 * f.moved, |value| format!("{value:.2}")),
];

/// The picture.
#[must_use]
pub fn svg(report: &Report) -> String {
    let panel = BAR * report.rows.len() as f64 + GAP;
    let (width, height) = (2.0 * BESIDE + panel * PANELS.len() as f64, TOP + HEIGHT + BELOW);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let title = format!("Ways to place VHDs: {} hosts, {} seeds", report.hosts, report.seeds.len());
    text(&mut out, BESIDE, 22.0, "start", &title);
    for (index, row) in report.rows.iter().enumerate() {
        let x = BESIDE + 140.0 * index as f64;
        rect(&mut out, x, 32.0, 10.0, 10.0, COLORS[index % COLORS.len()]);
        text(&mut out, x + 14.0, 41.0, "start", row.strategy);
    }
    for (index, (title, figure, written)) in PANELS.iter().enumerate() {
        let left = BESIDE + panel * index as f64;
        text(&mut out, left, TOP - 14.0, "start", title);
        let most = report.rows.iter().map(|row| figure(&row.mean) + figure(&row.spread)).fold(0.0, f64::max);
        let y = |value: f64| TOP + HEIGHT * (1.0 - value / most.max(f64::MIN_POSITIVE));
        for (at, row) in report.rows.iter().enumerate() {
            let (x, value, spread) = (left + BAR * at as f64, figure(&row.mean), figure(&row.spread));
            rect(&mut out, x, y(value), BAR - 4.0, y(0.0) - y(value), COLORS[at % COLORS.len()]);
            let middle = x + BAR / 2.0 - 2.0;
            let (from, to) = (y((value - spread).max(0.0)), y(value + spread));
            let _ = writeln!(out, "<path d=\"M {middle:.1} {from:.1} V {to:.1}\" stroke=\"#303030\" fill=\"none\"/>");
            text(&mut out, middle, y(0.0) + 16.0, "middle", &written(value));
        }
    }
    out.push_str("</svg>\n");
    out
}

fn rect(out: &mut String, x: f64, y: f64, width: f64, height: f64, color: &str) {
    let _ =
        writeln!(out, "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{color}\"/>");
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}
