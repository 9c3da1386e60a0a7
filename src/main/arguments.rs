//! Reads the arguments of a command and its environment, and reports mistakes in them.
//!
//! Invariant: wrong usage prints a few lines that name the mistake, and the exit code is 2. This
//! file does not know the settings.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::iter;
use std::process::ExitCode;
use std::time::Duration;

use clap::builder::{BoolishValueParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command, Parser};
use humantime::parse_duration;
use smol_graceful::{Address, LogWriter};

use crate::log;

/// The settings of a command, some of which may have no effect without another one.
pub(crate) trait Dependent: Parser {
    /// Returns a setting that has no effect, because another one is missing. `is_given` returns
    /// `true` for the fields that the arguments or the environment have set.
    fn given_in_vain(&self, is_given: impl Fn(&str) -> bool) -> Option<GivenInVain>;
}

/// A setting that has no effect, because another one is missing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct GivenInVain {
    /// The field of the setting.
    pub(crate) field: &'static str,
    /// The missing setting, in the form of a command line.
    pub(crate) needs: &'static str,
}

/// Reads the arguments of a command, and the environment for settings that the arguments leave out.
/// An empty variable counts as not set.
///
/// # Errors
///
/// Prints the mistake, or the text that the arguments ask for (`--help`), and returns the exit
/// code.
pub(crate) fn read<Settings: Dependent>() -> Result<Settings, ExitCode> {
    let is_empty = |name: &OsStr| env::var_os(name).is_some_and(|value| value.is_empty());
    let command = Settings::command().mut_args(|arg| match arg.get_env() {
        Some(name) if is_empty(name) => arg.env(None::<&str>),
        _ => arg,
    });
    let words = words(&command);
    let read = command.try_get_matches_from(words).and_then(|matches| {
        let settings = Settings::from_arg_matches(&matches)?;
        Ok((settings, matches))
    });
    let (settings, matches) = read.map_err(|error| usage::<Settings>(&error))?;
    let source = |field: &str| {
        matches.value_source(field).filter(|source| *source != ValueSource::DefaultValue)
    };
    match settings.given_in_vain(|field| source(field).is_some()) {
        Some(given) => Err(in_vain::<Settings>(&matches, &given)),
        None => Ok(settings),
    }
}

/// Prints the setting that has no effect, with the remedy. Returns the exit code.
fn in_vain<Settings: Parser>(matches: &ArgMatches, given: &GivenInVain) -> ExitCode {
    let GivenInVain { field, needs } = *given;
    let command = Settings::command();
    let arg = command.get_arguments().find(|arg| arg.get_id() == field);
    let flag = arg.and_then(Arg::get_long).map(|long| format!("--{long}"));
    let flag = flag.unwrap_or_else(|| field.to_uppercase());
    let variable = match matches.value_source(field) {
        Some(ValueSource::EnvVariable) => arg.and_then(Arg::get_env),
        _ => None,
    };
    let origin = variable.map(|name| format!(" (from the variable {})", name.to_string_lossy()));
    let (name, origin) = (command.get_name(), origin.unwrap_or_default());
    let _ = writeln!(
        io::stderr(),
        "{name}: {flag}{origin} has no effect without {needs}: give that, or leave {flag} out; \
         `{name} --help` tells more"
    );
    ExitCode::from(2)
}

/// Prints the mistake, or the text that the arguments ask for. Returns the exit code.
fn usage<Settings: Parser>(error: &clap::Error) -> ExitCode {
    let command = Settings::command();
    let name = command.get_name();
    if name.contains(' ') && error.use_stderr() {
        let text = error.render().to_string();
        // After the first empty line, clap repeats the usage.
        let wrong: Vec<_> =
            text.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
        let wrong = wrong.join(" ");
        let wrong = wrong.trim_start_matches("error: ");
        let origin = variable::<Settings>(error).map(|name| format!(" (from the variable {name})"));
        let origin = origin.unwrap_or_default();
        let advice = advice(&command, error).unwrap_or_default();
        let _ =
            writeln!(io::stderr(), "{name}: {wrong}{origin}{advice}; `{name} --help` tells more");
        return ExitCode::from(2);
    }
    let _ = error.print();
    if let Some(advice) = advice(&command, error) {
        let _ = writeln!(io::stderr(), "\n{name}{advice}.");
    }
    if let Some(name) = variable::<Settings>(error) {
        let _ = writeln!(io::stderr(), "\nThe value comes from the variable {name}.");
    }
    if error.kind() == ErrorKind::ValueValidation {
        // For a wrong value, clap leaves the usage out.
        let _ = write!(io::stderr(), "\n{}\n", Settings::command().render_usage());
    }
    if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
}

/// Returns advice on a word that is not a flag. Either a command line lacks `--` in front, or the
/// name of a command is misspelt.
fn advice(command: &Command, error: &clap::Error) -> Option<&'static str> {
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else { return None };
    if error.kind() != ErrorKind::UnknownArgument || word.starts_with('-') {
        return None;
    }
    match command.get_positionals().next() {
        None => Some(": the commands are `keep`, `check` and `generate`"),
        Some(_) => Some(": write `--` in front of COMMAND"),
    }
}

/// Returns the variable with the wrong value, unless an argument has it.
fn variable<Settings: Parser>(error: &clap::Error) -> Option<String> {
    let command = Settings::command();
    let named = error.get(ContextKind::InvalidArg);
    let arg = command.get_arguments().find(|arg| match named {
        Some(ContextValue::String(named)) => {
            named.split([' ', '=']).next().and_then(|flag| flag.strip_prefix("--"))
                == arg.get_long()
        }
        // clap does not name the value that is not UTF-8.
        _ => {
            let value = arg.get_env().and_then(env::var_os);
            error.kind() == ErrorKind::InvalidUtf8
                && value.is_some_and(|text| text.to_str().is_none())
        }
    })?;
    let name = arg.get_env().filter(|name| env::var_os(name).is_some())?;
    // If the arguments are to blame, they are wrong without the environment, too.
    let alone = command.clone().mut_args(|arg| arg.env(None::<&str>));
    let blamed = alone.try_get_matches_from(words(&command)).err();
    let is_same = |other: clap::Error| {
        other.kind() == error.kind() && other.get(ContextKind::InvalidArg) == named
    };
    (!blamed.is_some_and(is_same)).then(|| name.to_string_lossy().into_owned())
}

/// Returns the command's name and its arguments. The name of a subcommand is two words of the line.
fn words(command: &Command) -> impl Iterator<Item = OsString> + use<> {
    let name = command.get_name();
    iter::once(OsString::from(name)).chain(env::args_os().skip(name.split(' ').count()))
}

/// Begins the log of a command, which goes to standard error. The drop of the writer flushes the
/// log in a bounded time.
///
/// # Errors
///
/// Prints the reason, and returns the exit code.
pub(crate) fn begin_log() -> Result<LogWriter, ExitCode> {
    let writer = LogWriter::new(io::stderr()).map_err(|error| {
        // There is no thread for the log, and no request that this write could hold up.
        let _ = writeln!(io::stderr(), "smol-graceful: {error}");
        ExitCode::FAILURE
    })?;
    log::install(&writer, &env::var("RUST_LOG").unwrap_or_default());
    Ok(writer)
}

/// Warns of variables that are not settings, if their names begin with `prefix` and with none of
/// `others`.
pub(crate) fn warn_of_unknown_variables<Settings: Parser>(prefix: &str, others: &[&str]) {
    let is_other = |name: &str| others.iter().any(|other| name.starts_with(other));
    let names = env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned());
    let names: Vec<_> = names.filter(|name| name.starts_with(prefix) && !is_other(name)).collect();
    if names.is_empty() {
        // Return early, because making the list of known variables takes longer than the rest of
        // the start.
        return;
    }
    let command = Settings::command();
    let known: Vec<_> = command.get_arguments().filter_map(Arg::get_env).collect();
    for name in names.iter().filter(|name| !known.contains(&OsStr::new(name))) {
        ::log::warn!("the variable {name} means nothing; --help lists those that do");
    }
}

/// Reads one address of a list that commas separate.
pub(crate) fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|error| format!("{error} (a comma separates addresses)"))
}

/// Reads the variable of a flag without a value, such as `yes`.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    BoolishValueParser::new()
        .parse_ref(&Command::default(), None, OsStr::new(text))
        .map_err(|_| "write true or false".into())
}

/// Reads a duration such as `300ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .map_err(|_| "write a number with its unit, such as 300ms, 2s or 1m30s".into())
}
