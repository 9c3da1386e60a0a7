//! The server that is checked, in the form that an operator writes: a URL or an address.
//!
//! A [`Goal`] is pure until [`Goal::targets`] looks a name up. TLS is not supported, so the error
//! for `https:` says that the check needs the port without it.

use std::fmt;
use std::io;
use std::net::ToSocketAddrs;
use std::path::PathBuf;
use std::str::FromStr;

use super::load::Target;

/// A server, and maybe a path on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Goal {
    place: Place,
    /// The path and the query of a URL.
    pub(crate) path: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// A host and a port, with a colon between them.
    Tcp(String),
    Unix(PathBuf),
}

impl FromStr for Goal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if path.is_empty() {
                return Err("there is no path after `unix:`".to_owned());
            }
            return Ok(Self { place: Place::Unix(path.into()), path: None });
        }
        if text.starts_with("https:") {
            return Err("the check speaks no TLS; give the address of the port without it, such \
                        as 127.0.0.1:8082"
                .to_owned());
        }
        let (authority, path) = match text.strip_prefix("http://") {
            None => (text, None),
            Some(rest) => match rest.find(['/', '?']) {
                None => (rest, None),
                Some(at) if rest[at..].starts_with('/') => (&rest[..at], Some(&rest[at..])),
                Some(_) => return Err("write a `/` in front of the query".to_owned()),
            },
        };
        let is_url = text.starts_with("http://");
        if let Some(path) = path {
            is_target(path)?;
        }
        let path = path.map(str::to_owned);
        let has_port = authority.rsplit_once(':').is_some_and(|(host, port)| {
            port.parse::<u16>().is_ok_and(|port| port > 0) && !host.ends_with(':')
        });
        let whole = match authority {
            _ if authority.contains(['/', '@', ' ']) => None,
            "" => None,
            _ if has_port && authority.starts_with(':') => Some(format!("localhost{authority}")),
            _ if has_port => Some(authority.to_owned()),
            // The default port of a URL is 80.
            _ if is_url && (!authority.contains(':') || authority.ends_with(']')) => {
                Some(format!("{authority}:80"))
            }
            _ => None,
        };
        let Some(whole) = whole else {
            return Err("write http://127.0.0.1:8082/path, 127.0.0.1:8082, localhost:8082, \
                        [::1]:8082 or unix:/path"
                .to_owned());
        };
        Ok(Self { place: Place::Tcp(whole), path })
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Tcp(authority) => f.write_str(authority),
            Place::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Goal {
    /// Returns the value of `Host`.
    pub(crate) fn host(&self) -> &str {
        match &self.place {
            Place::Tcp(authority) => authority.strip_suffix(":80").unwrap_or(authority),
            Place::Unix(_) => "localhost",
        }
    }

    /// Returns the addresses to which clients can connect.
    ///
    /// # Errors
    ///
    /// Returns one line if there is no such host.
    pub(crate) fn targets(&self) -> io::Result<Vec<Target>> {
        let authority = match &self.place {
            Place::Unix(path) => return Ok(vec![Target::Unix(path.clone())]),
            Place::Tcp(authority) => authority,
        };
        let addrs = authority.to_socket_addrs().map_err(|error| {
            io::Error::new(error.kind(), format!("cannot find the host of {authority}: {error}"))
        })?;
        Ok(addrs.map(Target::Tcp).collect())
    }
}

/// Reads the target of a request: a path, and maybe a query.
pub(crate) fn is_target(text: &str) -> Result<String, String> {
    match text {
        _ if !text.starts_with('/') => Err("a path begins with `/`".to_owned()),
        _ if text.contains('#') => Err("a request has no fragment (`#`)".to_owned()),
        _ if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text.to_owned()),
        _ => {
            Err("a path has neither blanks nor letters beyond ASCII; write %20 for a blank"
                .to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_read_as_it_is_written() {
        for (text, host, path) in [
            ("127.0.0.1:8082", "127.0.0.1:8082", None),
            ("[::1]:8082", "[::1]:8082", None),
            ("localhost:8082", "localhost:8082", None),
            (":8082", "localhost:8082", None),
            ("http://example.com", "example.com", None),
            ("http://[::1]/", "[::1]", Some("/")),
            ("http://example.com:8082/a?b=c", "example.com:8082", Some("/a?b=c")),
            ("unix:/run/app.sock", "localhost", None),
        ] {
            let goal: Goal = text.parse().unwrap();
            assert_eq!((goal.host(), goal.path.as_deref()), (host, path), "{text}");
        }
        for text in [
            "",
            "8082",
            "localhost",
            "localhost:",
            "localhost:0",
            "localhost:65536",
            "unix:",
            "https://example.com/",
            "http://",
            "http:///a",
            "http://a@b/",
            "http://example.com?a",
            "http://example.com/a b",
            "example.com:80/a",
            "::1:8082/",
        ] {
            assert!(text.parse::<Goal>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_goal_leads_to_targets() {
        let targets = |text: &str| text.parse::<Goal>().unwrap().targets();
        assert_eq!(targets("[::1]:8082").unwrap(), ["[::1]:8082".parse().unwrap()]);
        assert_eq!(targets("unix:/a").unwrap(), [Target::Unix("/a".into())]);
        let local = targets(":8082").unwrap();
        assert!(local.contains(&"127.0.0.1:8082".parse().unwrap()), "{local:?}");
    }
}
