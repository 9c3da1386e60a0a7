//! `smol-graceful generate`: prints man pages and shell completions, from the same definitions as
//! `--help`.
//!
//! The command writes only to standard output, so a package decides where the files go. The
//! definition of each command is in its own file, and this file joins them.

use std::process::ExitCode;

use clap::{Command, CommandFactory, Parser, ValueEnum};
use clap_complete::aot::{Bash, Fish, Zsh, generate};
use clap_mangen::Man;

use crate::arguments::{Dependent, GivenInVain, read};
use crate::{check, keep, print, settings};

/// Prints a man page or shell completions, for packages
///
///     smol-graceful generate man > smol-graceful.1
///     smol-graceful generate man keep > smol-graceful-keep.1
///     smol-graceful generate bash > /usr/share/bash-completion/completions/smol-graceful
///     smol-graceful generate zsh > /usr/share/zsh/site-functions/_smol-graceful
///     smol-graceful generate fish > /usr/share/fish/vendor_completions.d/smol-graceful.fish
#[derive(Debug, Parser)]
#[command(name = "smol-graceful generate", verbatim_doc_comment)]
pub(crate) struct Settings {
    /// The kind of text
    #[arg(value_name = "WHAT")]
    what: Kind,

    /// The command of the man page [default: smol-graceful itself]
    #[arg(value_name = "COMMAND")]
    command: Option<Page>,
}

impl Dependent for Settings {
    /// The completions are those of all commands.
    fn given_in_vain(&self, _is_given: impl Fn(&str) -> bool) -> Option<GivenInVain> {
        let is_in_vain = self.command.is_some() && self.what != Kind::Man;
        is_in_vain.then_some(GivenInVain { field: "command", needs: "`man` in front of it" })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Man,
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Page {
    Keep,
    Check,
    Generate,
}

/// Prints the text that the command line asks for. Returns the exit code.
pub(crate) fn main() -> ExitCode {
    let settings: Settings = match read() {
        Ok(settings) => settings,
        Err(code) => return code,
    };
    if print(&text(&settings)) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn text(settings: &Settings) -> Vec<u8> {
    let mut text = Vec::new();
    let shells = &mut joined();
    let name = "smol-graceful";
    match settings.what {
        Kind::Bash => generate(Bash, shells, name, &mut text),
        Kind::Zsh => generate(Zsh, shells, name, &mut text),
        Kind::Fish => generate(Fish, shells, name, &mut text),
        Kind::Man => {
            // A write to text in memory does not fail.
            let _ = Man::new(page(settings.command)).render(&mut text);
        }
    }
    text
}

/// Returns the definition of one command for its man page.
fn page(command: Option<Page>) -> Command {
    let (page, name) = match command {
        None => (settings::Settings::command(), "smol-graceful"),
        Some(Page::Keep) => (keep::Settings::command(), "smol-graceful-keep"),
        Some(Page::Check) => (check::Settings::command(), "smol-graceful-check"),
        Some(Page::Generate) => (Settings::command(), "smol-graceful-generate"),
    };
    page.name(name).version(env!("CARGO_PKG_VERSION"))
}

/// Returns the definition of the whole binary, with its commands.
fn joined() -> Command {
    let commands = [
        keep::Settings::command().name("keep"),
        check::Settings::command().name("check"),
        Settings::command().name("generate"),
    ];
    settings::Settings::command().subcommands(commands)
}
