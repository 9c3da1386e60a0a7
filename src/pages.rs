//! The pages that only rustdoc reads: README.md, docs/embedding.md and docs/restart.md.
//!
//! The last two are modules of the documentation, so that they are found on docs.rs, and do not
//! exist in the compiled crate. The examples in all three are tests, but those of the last two need
//! the feature `keeper`. On docs.rs the relative links of the pages lead nowhere, so each has its
//! whole address here. Of two definitions of a link, rustdoc takes the first.

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Helps to choose between the ways to embed a server. This module is only a page of
/// documentation.
///
/// [`restart.md`]: crate::restarting
///
#[cfg(any(not(doctest), feature = "keeper"))]
#[doc = include_str!("../docs/embedding.md")]
pub mod embedding {}

/// Compares the ways to restart a server. This module is only a page of documentation.
///
/// [program.conf]: https://github.com/smol-graceful/smol-graceful/blob/main/deploy/supervisord/program.conf
/// [fcgi-program.conf]: https://github.com/smol-graceful/smol-graceful/blob/main/deploy/supervisord/fcgi-program.conf
/// [smol-graceful.service]: https://github.com/smol-graceful/smol-graceful/blob/main/deploy/systemd/smol-graceful.service
/// [smol-graceful.socket]: https://github.com/smol-graceful/smol-graceful/blob/main/deploy/systemd/smol-graceful.socket
/// [Dockerfile]: https://github.com/smol-graceful/smol-graceful/blob/main/deploy/docker/Dockerfile
/// [run script]: https://github.com/smol-graceful/smol-graceful/blob/main/deploy/s6-runit/run
/// [shell script]: https://github.com/smol-graceful/smol-graceful/blob/main/deploy/shell/app
/// [haproxy.cfg]: https://github.com/smol-graceful/smol-graceful/blob/main/deploy/haproxy/haproxy.cfg
/// [nginx.conf]: https://github.com/smol-graceful/smol-graceful/blob/main/deploy/nginx/nginx.conf
/// [deployment.yaml]: https://github.com/smol-graceful/smol-graceful/blob/main/deploy/kubernetes/deployment.yaml
/// [restart-go-supervisor.svg]: https://raw.githubusercontent.com/smol-graceful/smol-graceful/main/docs/restart-go-supervisor.svg
/// [restart-keeper.svg]: https://raw.githubusercontent.com/smol-graceful/smol-graceful/main/docs/restart-keeper.svg
/// [decisions.md]: https://github.com/smol-graceful/smol-graceful/blob/main/docs/decisions.md
///
#[cfg(any(not(doctest), feature = "keeper"))]
#[doc = include_str!("../docs/restart.md")]
pub mod restarting {}
