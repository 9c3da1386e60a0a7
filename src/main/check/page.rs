//! The report of a check as a page, which is one file without scripts that loads nothing.
//!
//! [`Page::draw`] is a pure function from counts to text. Its markup is well-formed XML, too, so
//! that a test can read it. The table has the same words as the report on standard output.

use std::fmt::{Display, Write};

use super::load::Report;
use super::picture::{Picture, escaped, grouped, short};
use super::progress::Restart;

const STYLE: &str = "\
:root{color-scheme:light dark;--text:#1f2328;--ground:#fff;--line:#d1d9e0;--good:#1a7f37;\
--bad:#cf222e}@media(prefers-color-scheme:dark){:root{--text:#e6edf3;--ground:#0d1117;\
--line:#3d444d;--good:#3fb950;--bad:#ff6a69}}\
body{font:15px/1.5 sans-serif;color:var(--text);background:var(--ground);max-width:900px;\
margin:24px auto;padding:0 16px}h1{font-size:22px;margin:0}h2{font-size:17px;margin:28px 0 8px}\
.verdict{font-size:18px;font-weight:bold;margin:4px 0 16px}.good{color:var(--good)}\
.bad{color:var(--bad)}svg{width:100%;height:auto}\
table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid var(--line);\
padding:4px 10px 4px 0;text-align:left;vertical-align:top}.number{text-align:right;\
font-variant-numeric:tabular-nums;white-space:nowrap}code{font-size:13px;overflow-wrap:anywhere}";

/// The content of a page.
#[derive(Debug)]
pub(crate) struct Page<'a> {
    pub(crate) picture: Picture<'a>,
    pub(crate) verdict: &'a str,
    pub(crate) is_good: bool,
    pub(crate) report: &'a Report,
    pub(crate) restarts: &'a [Restart],
    /// The command line of the check.
    pub(crate) line: &'a str,
    /// The names and values of the settings.
    pub(crate) settings: &'a [(&'static str, String)],
    /// The time at which the check ended.
    pub(crate) time: &'a str,
}

impl Page<'_> {
    /// Returns the page.
    pub(crate) fn draw(&self) -> String {
        let title = escaped(self.picture.title);
        let class = if self.is_good { "good" } else { "bad" };
        let verdict = escaped(self.verdict);
        let mut out = format!(
            "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/>\
             <meta name=\"viewport\" content=\"width=device-width\"/><title>{title}</title>\
             <style>{STYLE}</style></head>\n<body>\n<h1>{title}</h1>\n\
             <p class=\"verdict {class}\">{verdict}</p>\n{}",
            self.picture.draw()
        );
        self.draw_report(&mut out);
        self.draw_restarts(&mut out);
        self.draw_losses(&mut out);
        self.draw_settings(&mut out);
        out + "</body></html>\n"
    }

    fn draw_report(&self, out: &mut String) {
        *out += "<h2>Requests and connections</h2>\n<table id=\"report\">\n";
        for row in self.report.rows() {
            let class = if row.is_fault && row.number > 0 { "number bad" } else { "number" };
            let _ = writeln!(
                out,
                "<tr><th>{}</th><td class=\"{class}\">{}</td><td>{}</td></tr>",
                row.name,
                grouped(row.number),
                escaped(&row.words)
            );
        }
        *out += "</table>\n";
    }

    fn draw_restarts(&self, out: &mut String) {
        if self.restarts.is_empty() {
            return;
        }
        *out += "<h2>Restarts</h2>\n<p>Faults that clients noticed from the beginning of each to \
                 the beginning of the next.</p>\n<table id=\"restarts\">\n<tr>";
        for name in ["Restart", "took", "refused", "lost", "closed", "slowest answer"] {
            let _ = write!(out, "<th class=\"number\">{name}</th>");
        }
        *out += "</tr>\n";
        for restart in self.restarts {
            let counts = restart.counts;
            let cell = |text: &dyn Display| format!("<td class=\"number\">{text}</td>");
            let fault = |number: u64| {
                let bad = if number > 0 { " bad" } else { "" };
                format!("<td class=\"number{bad}\">{}</td>", grouped(number))
            };
            let _ = writeln!(
                out,
                "<tr>{}{}{}{}{}{}</tr>",
                cell(&restart.number),
                cell(&short(restart.took)),
                fault(counts.refused),
                fault(counts.lost),
                fault(counts.closed),
                cell(&short(restart.slowest))
            );
        }
        *out += "</table>\n";
    }

    fn draw_losses(&self, out: &mut String) {
        let failures = &self.report.failures;
        if failures.is_empty() {
            return;
        }
        *out += "<h2>Lost requests</h2>\n<ul id=\"losses\">\n";
        for failure in failures {
            let _ = writeln!(out, "<li>{}</li>", escaped(&failure.to_string()));
        }
        match self.report.lost().saturating_sub(failures.len() as u64) {
            0 => {}
            more => {
                let _ = writeln!(out, "<li>… and {more} more</li>");
            }
        }
        *out += "</ul>\n";
    }

    fn draw_settings(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "<h2>Settings</h2>\n<p><code>{}</code></p>\n<table id=\"settings\">",
            escaped(self.line)
        );
        for (name, value) in self.settings {
            let _ = writeln!(out, "<tr><th>{name}</th><td>{}</td></tr>", escaped(value));
        }
        let (version, time) = (env!("CARGO_PKG_VERSION"), self.time);
        let _ = writeln!(
            out,
            "<tr><th>Made</th><td>{time}, by smol-graceful {version}</td></tr>\n</table>"
        );
    }
}
