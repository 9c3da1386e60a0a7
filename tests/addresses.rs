//! Addresses: the text of an operator gives a server, or one line with the reason and the remedy.
//!
//! Every case runs the real binary over real sockets. The lines that a test cannot cause on every
//! machine are compared in `src/listen/bind_error.rs`, and the texts of addresses in
//! `src/address.rs`.

#![cfg(target_os = "linux")]

mod common;

use std::env;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{
    Client, Directory, KeeperProcess, ProcessId, Program, SERVER, activated, case, output,
    wait_until,
};
use rustix::process::{Signal, geteuid};
use smol_graceful::{Address, ListenOptions, Listener, Server, run};
use socket2::{Domain, Socket, Type};

// The abstract namespace.

#[test]
fn an_abstract_name_is_served_and_survives_a_restart() {
    let directory = Directory::new();
    let address = format!("unix:@sg-{}-served", std::process::id());
    let mut command = server(&[&address]);
    command.current_dir(directory.path());
    let mut servers = KeeperProcess::start(&command);
    assert_eq!(ask(&address), "okay");
    servers.restart();
    assert_eq!(ask(&address), "okay");
    let log = servers.end();
    assert_eq!(log.matches(&format!("listening on {address}")).count(), 2, "{log}");
    assert_eq!(
        fs::read_dir(directory.path()).unwrap().count(),
        0,
        "an abstract socket has no file"
    );
    // The name is free after the end of the server.
    Program::start(server(&[address])).stop();
}

#[test]
fn a_file_may_have_the_name_of_an_abstract_socket() {
    let directory = Directory::new();
    let mut command = server(&["unix:./@app"]);
    command.current_dir(directory.path());
    let mut program = Program::start(command);
    assert_eq!(ask(&unix(&directory.join("@app"))), "okay");
    program.stop();
    assert!(!directory.join("@app").exists());
}

#[test]
fn the_names_of_unix_sockets_have_a_limit() {
    let directory = Directory::new();
    let name = format!("unix:@{:a<107}", std::process::id());
    let path = format!("unix:{:a<107}", directory.join("a").display().to_string());
    let line = "of a Unix socket has at most 107 bytes, and this one has 108; choose a shorter one";
    for (what, longest) in [("name", &name), ("path", &path)] {
        let listen = format!("{longest}b");
        let expected = format!("cannot listen on {listen}: the {what} {line}");
        assert_eq!(refusal(&mut server(&[&listen])), expected);
    }
    let mut program = Program::start(server(&[&name]));
    assert_eq!(ask(&name), "okay");
    program.stop();
    let mut program = Program::start(server(&[&path]));
    assert_eq!(ask(&path), "okay");
    program.stop();
}

// The mode of a Unix socket.

#[test]
fn the_mode_of_a_socket_file_is_a_setting() {
    let directory = Directory::new();
    for (umask, mode, expected) in [
        ("077", Some("0666"), 0o666),
        ("000", Some("0660"), 0o660),
        ("022", Some("600"), 0o600),
        ("027", None, 0o750),
    ] {
        let path = directory.join("app.sock");
        let listen = unix(&path);
        let mut command = Command::new("sh");
        command.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh", SERVER]);
        command.args(["--work", "0s", "--listen", &listen]);
        command.envs(mode.map(|mode| ("SMOL_GRACEFUL_UNIX_MODE", mode)));
        let mut servers = KeeperProcess::start(&command);
        assert_eq!(mode_of(&path), expected, "{umask} {mode:?}");
        // The successor has the file of the predecessor.
        servers.restart();
        assert_eq!((mode_of(&path), &*ask(&listen)), (expected, "okay"));
        servers.end();
        assert!(!path.exists());
    }
}

#[test]
fn the_mode_of_an_inherited_socket_stays() {
    let directory = Directory::new();
    let path = directory.join("app.sock");
    let held = UnixListener::bind(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let args = ["--listen", &unix(&path), "--unix-mode", "0666"];
    let mut program = Program::start(activated("$$", "exec", vec![held.into()], &args));
    assert_eq!(mode_of(&path), 0o600);
    program.stop();
}

/// A mode may keep out the server's own user, and the server still has to find out whether the file
/// is stale.
#[test]
#[ignore = "needs root"]
fn a_mode_may_keep_out_the_owner() {
    assert!(geteuid().is_root(), "only root can become another user");
    let directory = Directory::new();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    let (program, path) = (directory.join("server"), directory.join("app.sock"));
    fs::copy(SERVER, &program).unwrap();
    let command = || {
        let mut command = Command::new(&program);
        command.args(["--unix-mode", "0060", "--listen", &unix(&path)]).uid(65_534).gid(65_534);
        command
    };
    let mut first = Program::start(command());
    let line = refusal(&mut command());
    assert!(
        line.ends_with("another process listens on it; stop that process, or choose another path")
    );
    assert_eq!(mode_of(&path), 0o060);
    first.signal(Signal::KILL);
    first.wait();
    assert!(path.exists());
    Program::start(command()).stop();
    assert!(!path.exists());
}

/// A decimal number in place of an octal one is a common mistake.
#[test]
fn a_mode_that_is_none_is_explained() {
    let directory = Directory::new();
    let address = Address::Unix(directory.join("app.sock"));
    let error = ListenOptions::default().unix_mode(660).bind(&address).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    let line = "a mode is octal, 0 to 0777, such as 0o660; this one is 0o1224";
    assert_eq!(error.to_string(), format!("cannot listen on {address}: {line}"));
    assert!(!directory.join("app.sock").exists());

    for mode in ["rw-rw----", "1777", "0888"] {
        let mut command = server(&["127.0.0.1:0"]);
        command.args(["--unix-mode", mode]);
        let line = "write the permissions in octal, from 0 to 0777, such as 0660";
        assert_eq!(
            misuse(&mut command),
            format!("invalid value '{mode}' for '--unix-mode <MODE>': {line}")
        );
    }
}

// Both families.

#[test]
fn both_wildcards_work_together_in_either_order() {
    for reuse_port in [&[][..], &["--reuse-port"]] {
        for ipv6_first in [false, true] {
            case(&format!("{reuse_port:?}, IPv6 first: {ipv6_first}"), || {
                let (_held, port) = free_port();
                let mut addresses = [format!("0.0.0.0:{port}"), format!("[::]:{port}")];
                if ipv6_first {
                    addresses.reverse();
                }
                let mut command = server(&addresses);
                command.args(reuse_port);
                let mut servers = KeeperProcess::start(&command);
                let listening = format!("listening on [::]:{port}");
                servers.program.line_where(&listening, |line| line.contains(&listening));
                for _ in 0..2 {
                    for ip in ["127.0.0.1", "[::1]"] {
                        assert_eq!(ask(&format!("{ip}:{port}")), "okay");
                    }
                    servers.restart();
                }
                let log = servers.end();
                assert_eq!(
                    log.matches(&format!("listening on 0.0.0.0:{port}")).count(),
                    3,
                    "{log}"
                );
                assert_eq!(log.matches(&format!("listening on [::]:{port}")).count(), 3, "{log}");
            });
        }
    }
}

/// If a program binds in the wrong order, the error names the right one.
#[test]
fn a_program_is_told_which_wildcard_to_bind_first() {
    let first = Listener::bind("[::]:0").unwrap();
    let Address::Tcp(addr) = *first.address() else { unreachable!() };
    let port = addr.port();
    let ipv4: Address = format!("0.0.0.0:{port}").parse().unwrap();
    let error = Listener::bind(&ipv4).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    let line = format!(
        "cannot listen on {ipv4}: this program listens on [::]:{port} already, which serves IPv4, \
         too; give {ipv4} before [::]:{port}, or leave it out"
    );
    assert_eq!(error.to_string(), line);

    let ipv4 = Listener::bind("0.0.0.0:0").unwrap();
    let Address::Tcp(addr) = *ipv4.address() else { unreachable!() };
    let port = addr.port();
    let _ipv6 = Listener::bind(format!("[::]:{port}")).unwrap();
    assert!(TcpStream::connect(("::1", port)).is_ok());
}

#[test]
fn the_wildcard_of_ipv6_alone_serves_both_families() {
    let mut program = Program::start(server(&["[::]:0"]));
    for ip in ["127.0.0.1", "[::1]"] {
        assert_eq!(ask(&format!("{ip}:{}", program.addr.port())), "okay");
    }
    program.stop();
}

// localhost.

#[test]
fn localhost_needs_no_resolver() {
    for listen in ["localhost:0", "LOCALHOST:0", " localhost:0 "] {
        let mut program = Program::start(server(&[listen]));
        assert_eq!(program.addr.ip(), Ipv4Addr::LOCALHOST);
        assert_eq!(ask(&program.addr.to_string()), "okay");
        program.stop();
    }
}

#[test]
fn localhost_takes_an_inherited_socket() {
    for ip in ["127.0.0.1:0", "[::1]:0"] {
        let held = TcpListener::bind(ip).unwrap();
        let addr = held.local_addr().unwrap();
        let listen = format!("localhost:{}", addr.port());
        let args = ["--listen", &listen, "--work", "0s"];
        let mut program = Program::start(activated("$$", "exec", vec![held.into()], &args));
        assert_eq!(program.addr, addr);
        assert_eq!(ask(&addr.to_string()), "okay");
        program.stop();
    }
}

#[test]
#[ignore = "needs unshare and ip, and the right to make a network namespace"]
fn localhost_is_that_of_ipv6_on_a_machine_without_ipv4() {
    let mut command = Command::new("unshare");
    let script = "ip link set lo up && ip addr del 127.0.0.1/8 dev lo && exec \"$@\"";
    command.args(["-rn", "sh", "-c", script, "sh", SERVER, "--listen", "localhost:0"]);
    let mut program = Program::start(command);
    assert_eq!(program.addr.ip(), Ipv6Addr::LOCALHOST);
    program.stop();
}

// A program that changes its directory.

/// The file of a relative path is removed at the end, and a successor finds it, although the
/// program has changed its directory.
#[test]
fn a_relative_path_survives_a_change_of_directory() {
    const NAME: &str = "a_relative_path_survives_a_change_of_directory";
    if env::var_os(CHILD).is_some() {
        return serve_and_change_directory();
    }
    let directory = Directory::new();
    let path = directory.join("app.sock");
    for restarts in [0, 1, 2] {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", NAME, "--nocapture"]).env(CHILD, "yes");
        command.current_dir(directory.path());
        let mut servers = KeeperProcess::start(&command);
        assert_eq!(ask(&unix(&path)), "okay");
        for _ in 0..restarts {
            servers.restart();
            assert_eq!(ask(&unix(&path)), "okay");
        }
        servers.end();
        assert!(!path.exists());
    }
}

const CHILD: &str = "SMOL_GRACEFUL_TEST_CHILD";

fn serve_and_change_directory() {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let address = "unix:app.sock";
    let listener = Listener::bind(address).unwrap();
    let directory = env::current_dir().unwrap();
    env::set_current_dir("/").unwrap();
    // A second bind is refused, by either path.
    if directory != Path::new("/") {
        let again = Address::Unix(directory.join("app.sock"));
        let error = Listener::bind(&again).unwrap_err().to_string();
        assert!(
            error.ends_with(": this program listens on it already; leave one of the two out"),
            "{error}"
        );
    }
    let outcome = run(Server::new(|_request| async { Ok("okay") }), [listener]).unwrap();
    assert!(outcome.is_drained());
}

// Sockets that this process was started with.

#[test]
fn an_inherited_socket_by_another_address_is_named() {
    for (held, wanted) in [
        ("127.0.0.1:0", ":P"),
        ("127.0.0.1:0", "0.0.0.0:P"),
        ("127.0.0.1:0", "[::]:P"),
        ("0.0.0.0:0", "127.0.0.1:P"),
        ("0.0.0.0:0", "localhost:P"),
        ("0.0.0.0:0", "[::]:P"),
        ("[::]:0", "localhost:P"),
        ("[::]:0", "0.0.0.0:P"),
    ] {
        case(&format!("{held} {wanted}"), || {
            let held = TcpListener::bind(held).unwrap();
            let addr = held.local_addr().unwrap();
            let wanted = wanted.replace('P', &addr.port().to_string());
            let line = format!(
                "cannot listen on {wanted}: this process was started with a socket on {addr}; \
                 write `{addr}` to use that one"
            );
            let fds = || vec![held.try_clone().unwrap().into()];
            assert_eq!(refusal(&mut activated("$$", "exec", fds(), &["--listen", &wanted])), line);
            let listen = addr.to_string();
            let mut program =
                Program::start(activated("$$", "exec", fds(), &["--listen", &listen]));
            assert_eq!(program.addr, addr);
            program.stop();

            // A socket that LISTEN_FDS does not name is found by its descriptor.
            let line = line.replace(&format!("`{addr}`"), "`fd:0`");
            let mut command = server(&[&wanted]);
            assert_eq!(refusal_with(&mut command, held.try_clone().unwrap().into()), line);
        });
    }
}

#[test]
fn an_inherited_unix_socket_is_known_by_any_path_to_its_file() {
    let directory = Directory::new();
    let path = directory.join("app.sock");
    let held = UnixListener::bind(&path).unwrap();
    symlink(directory.path(), directory.join("link")).unwrap();
    for listen in ["unix:app.sock", "unix:./app.sock", "unix:link/app.sock"] {
        let fds = vec![held.try_clone().unwrap().into()];
        let mut command = activated("$$", "exec", fds, &["--listen", listen, "--work", "0s"]);
        command.current_dir(directory.path());
        let mut program = Program::start(command);
        assert_eq!(ask(&unix(&path)), "okay");
        program.stop();
    }
    let mut command = server(&["unix:link/app.sock"]);
    command.current_dir(directory.path());
    let line = format!(
        "cannot listen on unix:link/app.sock: this process was started with a socket on unix:{}; \
         write `fd:0` to use that one",
        path.display()
    );
    assert_eq!(refusal_with(&mut command, held.into()), line);
}

/// A wrapper that does not `exec` has the process id for which the sockets are meant.
#[test]
fn sockets_that_were_passed_to_a_wrapper_are_named_once() {
    let exec = "has to start the server by `exec`";
    for (how, words, advice) in [
        ("", "passes sockets to process ", exec),
        ("LISTEN_PID= exec", "passes sockets, and LISTEN_PID does not say that", "set it to the"),
    ] {
        let held = TcpListener::bind("127.0.0.1:0").unwrap();
        let args = ["--listen", "127.0.0.1:0,localhost:0", "--work", "0s"];
        let mut shell = Program::start(activated("$$", how, vec![held.into()], &args));
        // The server is a child of the shell. Each line of the log has its process id.
        let server = ProcessId::named(&shell.to_string(), "Z ");
        assert_eq!(ask(&shell.addr.to_string()), "okay");
        server.signal(Signal::TERM);
        let log = shell.log();
        let server = format!("process {server}");
        let is_warning = |line: &&str| line.contains("LISTEN_FDS=1 passes sockets");
        let warnings: Vec<_> = log.lines().filter(is_warning).collect();
        assert_eq!(warnings.len(), 1, "{log}");
        assert!([words, advice, &server].iter().all(|part| warnings[0].contains(part)), "{log}");
    }
}

// Addresses in use.

#[test]
fn an_address_that_this_program_has_already_is_named() {
    let directory = Directory::new();
    let path = directory.join("app.sock");
    symlink(directory.path(), directory.join("link")).unwrap();
    let (file, link) = (unix(&path), unix(&directory.join("link/app.sock")));
    let name = format!("unix:@sg-{}-twice", std::process::id());
    let out = "leave one of the two out";
    for (first, second, line) in [
        (":P", ":P", format!("this program listens on it already; {out}")),
        ("[::]:P", "[::]:P", format!("this program listens on it already; {out}")),
        ("0.0.0.0:P", "0.0.0.0:P", format!("this program listens on it already; {out}")),
        ("127.0.0.1:P", "localhost:P", format!("this program listens on it already; {out}")),
        (
            ":P",
            "127.0.0.1:P",
            format!(
                "this program listens on [::]:P already, which serves it, \
         too; {out}"
            ),
        ),
        (
            ":P",
            "[::1]:P",
            format!(
                "this program listens on [::]:P already, which serves it, too; \
         {out}"
            ),
        ),
        (
            "127.0.0.1:P",
            ":P",
            format!(
                "this program listens on 127.0.0.1:P already, which is a \
         part of it; {out}"
            ),
        ),
        (
            "0.0.0.0:P",
            ":P",
            format!(
                "this program listens on 0.0.0.0:P already, which is a part \
         of it; {out}"
            ),
        ),
        (
            "127.0.0.1:P",
            "0.0.0.0:P",
            format!(
                "this program listens on 127.0.0.1:P already, which \
         is a part of it; {out}"
            ),
        ),
        (
            ":P",
            "0.0.0.0:P",
            "this program listens on [::]:P already, which serves IPv4, too; give \
         0.0.0.0:P before [::]:P, or leave it out"
                .into(),
        ),
        (&file, &file, format!("this program listens on it already; {out}")),
        (&file, &link, format!("this program listens on it already; {out}")),
        (&name, &name, format!("this program listens on it already; {out}")),
    ] {
        let (_held, port) = free_port();
        let with_port = |text: &str| text.replace(":P", &format!(":{port}"));
        let (first, second) = (with_port(first), with_port(second));
        let line = format!("cannot listen on {second}: {}", with_port(&line));
        assert_eq!(refusal(&mut server(&[&first, &second])), line);
        assert!(!path.exists(), "what was bound is removed");
    }
}

#[test]
fn an_address_of_another_process_is_named() {
    let directory = Directory::new();
    let name = format!("unix:@sg-{}-other", std::process::id());
    let addresses = ["127.0.0.1:0".into(), unix(&directory.join("app.sock")), name];
    let mut other = Program::start(server(&addresses));
    // The line of the last address comes when the program listens on all of them.
    other.wait_for("listening on unix:@");
    let stop = "stop that process, or choose another";
    for (listen, line) in [
        (
            other.addr.to_string(),
            format!("the address is in use by another process; {stop} address"),
        ),
        (
            format!("localhost:{}", other.addr.port()),
            format!("the address is in use by another process; {stop} address"),
        ),
        (addresses[1].clone(), format!("another process listens on it; {stop} path")),
        (addresses[2].clone(), format!("another process listens on it; {stop} name")),
    ] {
        assert_eq!(refusal(&mut server(&[&listen])), format!("cannot listen on {listen}: {line}"));
    }
}

#[test]
fn both_sides_have_to_ask_for_reuse_port() {
    for (theirs, ours, line) in [
        (
            true,
            false,
            "the address is in use by a process that asks for SO_REUSEPORT (--reuse-port), and \
             this one does not; let both ask for it, or choose another address",
        ),
        (
            false,
            true,
            "the address is in use by a process that does not ask for SO_REUSEPORT \
             (--reuse-port), or that belongs to another user; let both ask for it under the same \
             user, or choose another address",
        ),
    ] {
        let flag = |yes: bool| if yes { &["--reuse-port"][..] } else { &[] };
        let first = Program::server(flag(theirs));
        let listen = first.addr.to_string();
        let mut command = server(&[&listen]);
        command.args(flag(ours));
        assert_eq!(refusal(&mut command), format!("cannot listen on {listen}: {line}"));
    }
}

// Files at the path of a socket.

#[test]
fn what_is_at_the_path_of_a_socket_is_named() {
    let directory = Directory::new();
    let path = |name: &str| directory.join(name).display().to_string();
    fs::create_dir(path("dir")).unwrap();
    fs::write(path("file"), "").unwrap();
    symlink("dir/app.sock", path("link")).unwrap();
    for (name, line) in [
        (
            "dir",
            format!(
                "it is a directory; write the path of a file, such as \
         `unix:{}`",
                path("dir/app.sock")
            ),
        ),
        (
            "dir/",
            format!(
                "it is a directory; write the path of a file, such as \
         `unix:{}`",
                path("dir/app.sock")
            ),
        ),
        ("file", "the file exists and is not a socket; remove it, or choose another path".into()),
        ("file/app.sock", format!("{} is not a directory; choose another path", path("file"))),
        (
            "link",
            "it is a symbolic link to dir/app.sock; write the path of the socket itself, or \
         remove the link"
                .into(),
        ),
        (
            "no/app.sock",
            format!(
                "there is no directory {}; make it, or choose another \
         path",
                path("no")
            ),
        ),
        ("no/", "the path ends in a slash; write the path of a file".into()),
    ] {
        let listen = format!("unix:{}", path(name));
        assert_eq!(refusal(&mut server(&[&listen])), format!("cannot listen on {listen}: {line}"));
    }
    assert!(directory.join("file").exists() && directory.join("link").is_symlink());
}

#[test]
#[ignore = "needs root"]
fn what_another_user_may_not_do_is_named() {
    assert!(geteuid().is_root(), "only root can become another user");
    let directory = Directory::new();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o755)).unwrap();
    // The other user may run the copy in this directory.
    let program = directory.join("server");
    fs::copy(SERVER, &program).unwrap();
    let path = |name: &str| directory.join(name).display().to_string();
    for (name, mode) in [("closed", 0o700), ("stale", 0o777)] {
        drop(UnixListener::bind(path(name)).unwrap());
        // A program that another test starts may hold a copy until its `exec`.
        wait_until("nobody holds the socket", || {
            let probe = UnixDatagram::unbound().unwrap().connect(path(name));
            probe.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
        });
        fs::set_permissions(path(name), Permissions::from_mode(mode)).unwrap();
    }
    let refused = |listen: &str| {
        let mut command = Command::new(&program);
        command.args(["--listen", listen]).uid(65_534).gid(65_534);
        refusal(&mut command)
    };
    for (name, line) in [
        (
            "closed",
            format!(
                "the socket file belongs to user root, and this user may not connect to it; if no \
                 server listens on it any more, remove {}, or choose another path",
                path("closed")
            ),
        ),
        (
            "stale",
            format!(
                "the socket file is stale and belongs to user root, and this user may not remove \
                 it (Permission denied); remove {}, or choose another path",
                path("stale")
            ),
        ),
        (
            "new",
            format!(
                "this user may not make a file in {}; change who may, or choose another path",
                directory.path().display()
            ),
        ),
    ] {
        let listen = format!("unix:{}", path(name));
        assert_eq!(refused(&listen), format!("cannot listen on {listen}: {line}"));
    }
    let first_free = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap();
    if first_free.trim() == "1024" {
        let line = refused("127.0.0.1:1023");
        assert!(
            line.starts_with(
                "cannot listen on 127.0.0.1:1023: this user may not listen on a \
         port below 1024; choose one from 1024 on, "
            ),
            "{line}"
        );
    }
    // The kernel lets only sockets of one user share an address.
    let first = Program::server(&["--reuse-port"]);
    let mut command = Command::new(&program);
    let listen = first.addr.to_string();
    command.args(["--reuse-port", "--listen", &listen]).uid(65_534).gid(65_534);
    assert!(refusal(&mut command).contains("or that belongs to another user; "));
}

// Other texts.

#[test]
fn an_address_that_cannot_be_bound_is_explained() {
    for (listen, line) in [
        (
            "224.0.0.1:0",
            "no client can connect to 224.0.0.1; choose an address of this machine, or `:0` for \
             every interface",
        ),
        (
            "255.255.255.255:0",
            "no client can connect to 255.255.255.255; choose an address of this machine, or `:0` \
             for every interface",
        ),
        ("unix:/proc/app.sock", "the file system of /proc takes no sockets; choose another path"),
        (
            "192.0.2.1:0",
            "this machine has no such address; choose one of its own, or `:0` for every interface",
        ),
        (
            "[fe80::1]:0",
            "a link-local address needs a zone, the number that `ip link` shows for the \
             interface; write `[fe80::1%2]:0`",
        ),
        (
            "[fe80::1%9999]:0",
            "this machine has no interface with the number of the zone; write one that `ip link` \
             shows",
        ),
    ] {
        assert_eq!(refusal(&mut server(&[listen])), format!("cannot listen on {listen}: {line}"));
    }
}

#[test]
fn a_text_that_is_no_address_is_a_usage_error() {
    for (listen, part) in [
        (":1,,:2", "`` is not an address to listen on: it is empty; write `127.0.0.1:8082`"),
        (":1,", "`` is not an address to listen on: it is empty; "),
        ("  ", "`` is not an address to listen on: it is empty; "),
        ("unix:@", "`unix:@` is not an address to listen on: a name is missing after the `@`"),
        ("unix:/tmp/a,b.sock", "`b.sock` is not an address to listen on: write `127.0.0.1:8082`"),
        ("*:8082", "write `:8082` for every interface"),
        ("http://localhost:8082", "write `localhost:8082`"),
        ("127.0.0.1:65536", "a port is a number from 0 to 65535"),
        ("[fe80::1%lo]:80", "write the zone as the number"),
        ("example.org:80", "names are not looked up, apart from localhost"),
    ] {
        let line = misuse(&mut server(&[listen]));
        assert!(line.contains(part) && line.ends_with("(a comma separates addresses)"), "{line}");
    }
}

#[test]
fn white_space_and_zeros_do_not_count() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut command = Command::new(SERVER);
    command.args(["--work", "0s"]).env("SMOL_GRACEFUL_LISTEN", " 127.0.0.1:0 , fd:00 \n");
    let mut program = Program::start_with_stdin(command, OwnedFd::from(held.try_clone().unwrap()));
    program.wait_for(&format!("listening on {} (inherited)", held.local_addr().unwrap()));
}

// The tools of the tests above

fn server(addresses: &[impl AsRef<str>]) -> Command {
    let mut command = Command::new(SERVER);
    command.args(["--work", "0s"]);
    for address in addresses {
        command.args(["--listen", address.as_ref()]);
    }
    command
}

/// Runs a server that cannot start, and returns its one line with the reason.
fn refusal(command: &mut Command) -> String {
    told(command.stdin(Stdio::null()), 1)
}

fn refusal_with(command: &mut Command, stdin: OwnedFd) -> String {
    told(command.stdin(stdin), 1)
}

/// Runs a server with wrong flags, and returns the line that names the mistake.
fn misuse(command: &mut Command) -> String {
    told(command.stdin(Stdio::null()), 2)
}

fn told(command: &mut Command, code: i32) -> String {
    let output = output(command);
    let log = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{log}");
    let prefix = if code == 1 { "smol-graceful: " } else { "error: " };
    let lines: Vec<_> = log.lines().filter_map(|line| line.strip_prefix(prefix)).collect();
    assert_eq!(lines.len(), 1, "{log}");
    lines[0].to_owned()
}

/// Returns the answer of the server at `address`.
fn ask(address: &str) -> String {
    Client::connect_to(&address.parse().unwrap()).get("/").response().text()
}

fn unix(path: &Path) -> String {
    format!("unix:{}", path.display())
}

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// Returns a port on which no process listens in either family. The kernel gives it to no other
/// process as long as the socket is held.
fn free_port() -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
    socket.set_only_v6(false).unwrap();
    // With this option, a server can listen on the port, because it sets the option, too.
    socket.set_reuse_address(true).unwrap();
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}
