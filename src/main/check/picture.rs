//! The picture of a check, as SVG: requests, slowest answers and faults over the time.
//!
//! [`Picture::draw`] is a pure function from a [`Timeline`] to text. The picture has no script and
//! loads nothing, and has its own background and colours for light and dark. The axis of the times
//! is logarithmic and always the same, so that two pictures can be compared.

use std::fmt::Write;
use std::time::Duration;

use super::load::Timeline;
use super::load::timeline::Bucket;

/// The size of the picture.
const SIZE: (f64, f64) = (900.0, 280.0);

/// The beginning and the end of the time axis.
pub(super) const LEFT: f64 = 66.0;
pub(super) const RIGHT: f64 = 848.0;

/// The plot of the requests, from the lower line to the upper one.
const REQUESTS: (f64, f64) = (122.0, 68.0);

/// The plot of the times, from the lower line to the upper one.
const TIMES: (f64, f64) = (208.0, 143.0);

/// The first line of faults, and the distance to the next.
const FAULTS: f64 = 217.0;
const FAULT: f64 = 13.0;

/// The end of the lines of faults.
const BOTTOM: f64 = FAULTS + 3.0 * FAULT;

/// The largest number of columns, because more would be narrower than two points.
pub(super) const COLUMNS: usize = 386;

/// The labels of the times. The axis is a bit longer than the last label.
const LABELS: [(&str, f64); 5] =
    [("1 ms", 0.0), ("10 ms", 1.0), ("100 ms", 2.0), ("1 s", 3.0), ("10 s", 4.0)];
const DECADES: f64 = 4.5;

/// The colours of the background, the text, lines, restarts, requests, times, and the faults.
const STYLE: &str = "\
svg{color-scheme:light dark}text{fill:#424a53}\
.title{font-weight:bold;font-size:15px;fill:#1f2328}\
.heading{font-style:italic}.ground{fill:#fff;stroke:#d1d9e0}.line{stroke:#d1d9e0}\
.restart{fill:#ddf4ff}.edge{stroke:#54aeff}.requests{fill:#54aeff;stroke:#0969da}\
.times{fill:#c297ff;stroke:#8250df}.refused{fill:#e16f24}\
.lost{fill:#cf222e}.told{fill:#fff;stroke:#9a6700}.untold{fill:#9a6700}.bad{font-weight:bold}\
.note{fill:transparent}\
@media(prefers-color-scheme:dark){text{fill:#b1bac4}.title{fill:#f0f6fc}\
.ground{fill:#0d1117;stroke:#3d444d}.line{stroke:#3d444d}.restart{fill:#12263f}\
.edge{stroke:#316dca}.requests{fill:#1f6feb;stroke:#58a6ff}.times{fill:#6e40c9;stroke:#bc8cff}\
.refused{fill:#f0883e}.lost{fill:#ff6a69}.told{fill:#0d1117;stroke:#d29922}.untold{fill:#d29922}}";

/// The content of a picture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Picture<'a> {
    pub(crate) title: &'a str,
    pub(crate) timeline: &'a Timeline,
    /// The number of requests in 100 ms at the top of the plot. With `None`, it is the largest
    /// number that there was.
    pub(crate) scale: Option<u64>,
    /// If this is `true`, a column shows its numbers when a mouse is over it.
    pub(crate) has_notes: bool,
}

impl Picture<'_> {
    /// Returns the picture.
    pub(crate) fn draw(&self) -> String {
        let (columns, width) = self.timeline.in_at_most(COLUMNS);
        let total = columns.iter().copied().fold(Bucket::default(), Bucket::and);
        let plot = Plot { width, step: (RIGHT - LEFT) / columns.len().max(1) as f64, columns };
        let mut out = String::new();
        self.draw_frame(&mut out, &total);
        plot.draw_restarts(&mut out, self.timeline);
        plot.draw_requests(&mut out, self.scale);
        plot.draw_times(&mut out);
        draw_key(&mut out);
        plot.draw_faults(&mut out, &total);
        plot.draw_seconds(&mut out);
        if self.has_notes {
            plot.draw_notes(&mut out);
        }
        out + "</svg>\n"
    }

    /// Draws the background, title, summary and legend.
    fn draw_frame(&self, out: &mut String, total: &Bucket) {
        let (wide, high) = SIZE;
        let restarts = self.timeline.restarts().len();
        let s = if restarts == 1 { "" } else { "s" };
        let longest = self.timeline.restarts().iter().map(|band| band.ended - band.begun).max();
        let took = longest.map_or(String::new(), |longest| format!(" (up to {})", short(longest)));
        let summary = format!(
            "{restarts} restart{s}{took} · {} requests answered, {} refused, {} lost · {} \
             connections closed by the server",
            grouped(total.answered),
            grouped(total.refused),
            grouped(total.lost),
            grouped(total.closed())
        );
        let title = escaped(self.title);
        let _ = write!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {wide} {high}\" \
             width=\"{wide}\" height=\"{high}\" role=\"img\" font-family=\"sans-serif\" \
             font-size=\"11\">\n\
             <title>{title}</title>\n<desc>{summary}</desc>\n<style>{STYLE}</style>\n\
             <rect class=\"ground\" x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"6\"/>\n\
             <text class=\"title\" x=\"12\" y=\"24\">{title}</text>\n\
             <text x=\"12\" y=\"42\">{summary}</text>\n",
            wide - 1.0,
            high - 1.0
        );
    }
}

/// The part of a picture with a time axis.
struct Plot {
    columns: Vec<Bucket>,
    /// The duration of a column.
    width: Duration,
    /// The width of a column, in points.
    step: f64,
}

impl Plot {
    /// Returns the place of a time on the axis.
    fn x(&self, time: Duration) -> f64 {
        (LEFT + time.as_secs_f64() / self.width.as_secs_f64() * self.step).min(RIGHT)
    }

    fn left(&self, column: usize) -> f64 {
        LEFT + column as f64 * self.step
    }

    /// Draws a band for each restart, from the beginning to the end of its command.
    fn draw_restarts(&self, out: &mut String, timeline: &Timeline) {
        let (top, bottom) = (REQUESTS.1 - 6.0, BOTTOM);
        for (number, restart) in (1..).zip(timeline.restarts()) {
            let (from, to) = (self.x(restart.begun), self.x(restart.ended));
            let (wide, high) = ((to - from).max(2.0), bottom - top);
            let took = short(restart.ended - restart.begun);
            let _ = writeln!(
                out,
                "<g><title>restart {number}, {took}</title>\
                 <rect class=\"restart\" x=\"{from:.1}\" y=\"{top}\" width=\"{wide:.1}\" \
                 height=\"{high}\"/>\
                 <path class=\"edge\" d=\"M{from:.1} {top}V{bottom}\" stroke-dasharray=\"3 2\"/>\
                 </g>"
            );
        }
    }

    fn draw_requests(&self, out: &mut String, scale: Option<u64>) {
        // The scale is for 100 ms, and a column may be longer.
        let times = self.width.as_millis() / 100;
        let most = self.columns.iter().map(|column| column.answered).max().unwrap_or_default();
        let top = match scale {
            Some(scale) => scale.saturating_mul(u64::try_from(times).unwrap_or(u64::MAX)),
            None => round(most),
        };
        let (zero, high) = REQUESTS;
        let heights = self.columns.iter().map(|column| {
            let part = column.answered as f64 / top as f64;
            zero - (zero - high) * part.min(1.0)
        });
        self.draw_steps(out, "requests", zero, heights);
        let millis = self.width.as_millis();
        label(out, high + 4.0, &grouped(top));
        label(out, zero, "0");
        heading(out, high, &format!("requests answered in {millis} ms"));
    }

    fn draw_times(&self, out: &mut String) {
        let (zero, high) = TIMES;
        let at = |decades: f64| zero - (zero - high) * decades / DECADES;
        for (text, decades) in LABELS {
            let y = at(decades);
            let _ = writeln!(out, "<path class=\"line\" d=\"M{LEFT} {y:.1}H{RIGHT}\"/>");
            label(out, y + 3.5, text);
        }
        let heights = self.columns.iter().map(|column| {
            let decades = (column.slowest.as_secs_f64() * 1000.0).max(1.0).log10();
            at(decades.min(DECADES))
        });
        self.draw_steps(out, "times", zero, heights);
        heading(out, high, "slowest of them");
    }

    /// Draws a plot with a height for each column.
    fn draw_steps(
        &self,
        out: &mut String,
        class: &str,
        zero: f64,
        heights: impl Iterator<Item = f64>,
    ) {
        let mut path = format!("M{LEFT} {zero}");
        for (column, height) in heights.enumerate() {
            let _ = write!(path, "V{height:.1}H{:.1}", self.left(column + 1));
        }
        let _ = writeln!(
            out,
            "<path class=\"{class}\" fill-opacity=\".55\" stroke-width=\".8\" \
             d=\"{path}V{zero}Z\"/>"
        );
    }

    /// Draws a line for each kind of fault, with a mark in each column with such a fault, and the
    /// sum.
    fn draw_faults(&self, out: &mut String, total: &Bucket) {
        let sums = [("refused", total.refused), ("lost", total.lost), ("closed", total.closed())];
        for (line, (name, sum)) in sums.into_iter().enumerate() {
            let top = FAULTS + line as f64 * FAULT;
            let (middle, base, x) = (top + FAULT / 2.0, top + FAULT - 3.0, RIGHT + 6.0);
            let class = if sum > 0 { " class=\"bad\"" } else { "" };
            let sum = grouped(sum);
            let _ = writeln!(
                out,
                "<path class=\"line\" d=\"M{LEFT} {middle}H{RIGHT}\"/>\n\
                 <text x=\"12\" y=\"{base}\">{name}</text>\n\
                 <text{class} x=\"{x}\" y=\"{base}\">{sum}</text>"
            );
        }
        self.draw_marks(out, "refused", 0.0, |bucket| bucket.attempts);
        self.draw_marks(out, "lost", 1.0, |bucket| bucket.lost);
        self.draw_marks(out, "told", 2.0, |bucket| bucket.told);
        // These marks are drawn last, over the others, because a client cannot prepare for such a
        // close.
        self.draw_marks(out, "untold", 2.0, |bucket| bucket.untold);
    }

    /// Draws a mark in each column with such a fault.
    fn draw_marks(&self, out: &mut String, class: &str, line: f64, of: impl Fn(&Bucket) -> u64) {
        let (y, high, wide) = (FAULTS + line * FAULT + 2.0, FAULT - 4.0, self.step.max(2.0));
        for (column, bucket) in self.columns.iter().enumerate() {
            if of(bucket) > 0 {
                let x = self.left(column);
                let _ = writeln!(
                    out,
                    "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y}\" width=\"{wide:.1}\" \
                     height=\"{high}\"/>"
                );
            }
        }
    }

    /// Draws the axis of the time.
    fn draw_seconds(&self, out: &mut String) {
        let seconds = self.width.as_secs_f64() * self.columns.len() as f64;
        let every = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600];
        let every = every.into_iter().find(|every| seconds / f64::from(*every) <= 16.0);
        let every = every.unwrap_or(7200);
        let y = BOTTOM + 14.0;
        let _ = writeln!(out, "<path class=\"line\" d=\"M{LEFT} {BOTTOM}H{RIGHT}\"/>");
        for second in (0..).step_by(every as usize) {
            let x = LEFT + f64::from(second) / self.width.as_secs_f64() * self.step;
            if x > RIGHT {
                break;
            }
            let _ = writeln!(out, "<path class=\"line\" d=\"M{x:.1} {BOTTOM}v3\"/>");
            let _ = writeln!(
                out,
                "<text x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{second} s</text>"
            );
        }
    }

    /// Draws a note with its numbers over each column.
    fn draw_notes(&self, out: &mut String) {
        let (top, high) = (REQUESTS.1, BOTTOM - REQUESTS.1);
        for (column, bucket) in self.columns.iter().enumerate() {
            let x = self.left(column);
            let step = self.step;
            let from = self.width.as_secs_f64() * column as f64;
            let Bucket { answered, told, untold, attempts, lost, .. } = bucket;
            let slowest = short(bucket.slowest);
            let _ = writeln!(
                out,
                "<rect class=\"note\" x=\"{x:.1}\" y=\"{top}\" width=\"{step:.1}\" \
                 height=\"{high}\"><title>{from:.1} s: {answered} answered, slowest {slowest}, \
                 {attempts} connects refused, {lost} lost, {told} closed with a word and {untold} \
                 without</title></rect>"
            );
        }
    }
}

/// Draws the key for the marks without a name, to the right of a heading.
fn draw_key(out: &mut String) {
    let (x, y) = (RIGHT - 336.0, TIMES.1 - 5.0);
    let _ = writeln!(
        out,
        "<g transform=\"translate({x} {y})\">\
         <rect class=\"key restart\" y=\"-9\" width=\"12\" height=\"10\"/>\
         <path class=\"edge\" d=\"M0-9V1\" stroke-dasharray=\"3 2\"/><text x=\"18\">restart</text>\
         <rect class=\"key told\" x=\"68\" y=\"-8\" width=\"4\" height=\"8\"/>\
         <text x=\"78\">closed, as announced</text>\
         <rect class=\"key untold\" x=\"212\" y=\"-8\" width=\"4\" height=\"8\"/>\
         <text x=\"222\">closed unannounced</text></g>"
    );
}

/// Writes a heading above the line `y`.
fn heading(out: &mut String, y: f64, text: &str) {
    let (x, y) = (LEFT + 3.0, y - 5.0);
    let _ = writeln!(out, "<text class=\"heading\" x=\"{x}\" y=\"{y}\">{text}</text>");
}

/// Writes a label to the left of the plot.
fn label(out: &mut String, y: f64, text: &str) {
    let x = LEFT - 5.0;
    let _ = writeln!(out, "<text x=\"{x}\" y=\"{y:.1}\" text-anchor=\"end\">{text}</text>");
}

/// Returns the smallest number that is 1, 2 or 5 with zeros, and not smaller than `number`.
pub(super) fn round(number: u64) -> u64 {
    let mut unit: u64 = 1;
    loop {
        for digit in [1, 2, 5] {
            if unit.saturating_mul(digit) >= number {
                return unit.saturating_mul(digit);
            }
        }
        unit = unit.saturating_mul(10);
    }
}

/// Returns a time in milliseconds if it is short, and in seconds otherwise.
pub(crate) fn short(time: Duration) -> String {
    match time.as_millis() {
        millis @ 0..1000 => format!("{millis} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

/// Returns a number with commas between its thousands.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let parts: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    parts.join(",")
}

/// Returns a text with the escapes of XML.
pub(crate) fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // XML does not allow these characters.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
