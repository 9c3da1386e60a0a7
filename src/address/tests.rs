//! Tests of [`Address`]: its text, the reasons why a text is no address, and which address gets a
//! socket that already listens.
//!
//! No test here binds an address. `tests/addresses.rs` listens on addresses.

use super::*;

#[test]
fn addresses_are_read_and_written() {
    for text in [
        "127.0.0.1:8082",
        "[::1]:8082",
        "[fe80::1%2]:8082",
        ":8082",
        ":0",
        "localhost:0",
        "localhost:8082",
        "unix:/run/app.sock",
        "unix:a",
        "unix:@a",
        "unix:@/run/app.sock",
        "unix:./@a",
        "unix:a@b",
        "unix:http://a",
        "fd:0",
    ] {
        assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
    }
    for (text, plain) in [
        (" :8082\n", ":8082"),
        ("\t127.0.0.1:80 ", "127.0.0.1:80"),
        (" unix:/a b ", "unix:/a b"),
        ("LocalHost:80", "localhost:80"),
        ("fd:03", "fd:3"),
        ("[0:0::1]:080", "[::1]:80"),
    ] {
        assert_eq!(text.parse::<Address>().unwrap().to_string(), plain);
    }
    assert_eq!("unix:@a".parse(), Ok(Address::Abstract("a".into())));
    assert_eq!("unix:./@a".parse(), Ok(Address::Unix("./@a".into())));
    assert_eq!(Address::Unix("@a".into()).to_string(), "unix:./@a");
}

/// Each advice fits the probable meaning of the text.
#[test]
fn what_is_not_an_address_is_explained() {
    let port = "a port is a number from 0 to 65535";
    let brackets =
        "write an IPv6 address in brackets, and the port after them, such as `[::1]:8082`";
    let fd = "write the number of an inherited descriptor, such as `fd:0`";
    let scheme = "leave out the scheme and the path: write `localhost:8082`";
    for (text, advice) in [
        ("", "it is empty; write `127.0.0.1:8082`"),
        ("  ", "it is empty; write `127.0.0.1:8082`"),
        ("app", "write `127.0.0.1:8082`"),
        ("b.sock", "write `127.0.0.1:8082`"),
        ("8082", "write `:8082` for every interface, or `localhost:8082`"),
        (":", port),
        (":-1", port),
        (":+1", port),
        (":65536", port),
        (":http", port),
        ("127.0.0.1:", port),
        ("127.0.0.1:65536", port),
        ("127.0.0.1: 80", port),
        ("localhost:http", port),
        ("localhost:99999", port),
        (
            "example.org:80",
            "names are not looked up, apart from localhost: write an IP address, such as \
             `127.0.0.1:80`",
        ),
        ("999.0.0.1:80", "names are not looked up"),
        ("localhost:8082/", "leave out the path: write `localhost:8082`"),
        ("127.0.0.1:8082/path", "leave out the path: write `127.0.0.1:8082`"),
        ("UNIX:", "a path is missing"),
        ("FD:x", fd),
        ("localhost", "write it with a port, such as `localhost:8082`"),
        ("LOCALHOST", "write it with a port, such as `localhost:8082`"),
        ("1.2.3.4", "write it with a port, such as `1.2.3.4:8082`"),
        ("::1", brackets),
        ("[::1]", brackets),
        ("::1:80", brackets),
        ("1:2:3:4:5:6:7:8:80", brackets),
        ("[fe80::1%lo]:80", "write the zone as the number that `ip link` shows"),
        ("*:8082", "write `:8082` for every interface"),
        ("http://localhost:8082", scheme),
        ("tcp://localhost:8082/", scheme),
        ("TCP:127.0.0.1:80", "leave out the scheme and the path: write `127.0.0.1:80`"),
        ("UNIX:/run/app.sock", "write `unix:/run/app.sock`"),
        ("FD:0", "write `fd:0`"),
        ("@app", "write `unix:@app` for a Unix socket"),
        ("[127.0.0.1]:80", "leave out the brackets: write `127.0.0.1:80`"),
        ("[LOCALHOST]:80", "leave out the brackets: write `localhost:80`"),
        ("http://example.org", "leave out the scheme and the path; write `127.0.0.1:8082`"),
        ("/run/app.sock", "write `unix:/run/app.sock` for a Unix socket"),
        ("./app.sock", "write `unix:./app.sock` for a Unix socket"),
        ("unix:", "a path is missing, as in `unix:/run/app.sock`"),
        ("unix:@", "a name is missing after the `@`, as in `unix:@app`"),
        ("unix:a\0b", "it contains a zero byte"),
        ("unix:@a\0b", "it contains a zero byte"),
        ("fd:", fd),
        ("fd:x", fd),
        ("fd:-1", fd),
        ("fd:+1", fd),
        ("fd:4294967296", fd),
    ] {
        let line = text.parse::<Address>().unwrap_err().to_string();
        let text = text.trim().escape_debug();
        let expected = format!("`{text}` is not an address to listen on: {advice}");
        assert!(line.starts_with(&expected), "{line}\n{expected}");
        assert!(!line.contains('\n'), "{line}");
    }
}

#[test]
fn a_socket_serves_who_wanted_its_address() {
    for (wanted, bound, covers) in [
        ("127.0.0.1:80", "127.0.0.1:80", true),
        ("127.0.0.1:0", "127.0.0.1:80", true),
        ("127.0.0.1:81", "127.0.0.1:80", false),
        ("127.0.0.2:80", "127.0.0.1:80", false),
        ("127.0.0.1:80", "0.0.0.0:80", false),
        ("127.0.0.1:80", "[::ffff:127.0.0.1]:80", true),
        ("[::]:80", "[::]:80", true),
        ("[::]:80", "0.0.0.0:80", false),
        (":80", "0.0.0.0:80", true),
        (":80", "[::]:80", true),
        (":0", "[::]:80", true),
        (":80", "[::]:81", false),
        (":80", "[::1]:80", false),
        (":80", "127.0.0.1:80", false),
        ("localhost:80", "127.0.0.1:80", true),
        ("localhost:0", "[::1]:80", true),
        ("localhost:80", "[::1]:81", false),
        ("localhost:80", "127.0.0.2:80", false),
        ("localhost:80", "0.0.0.0:80", false),
        ("unix:/a", "unix:/a", true),
        ("unix:/a", "unix:/b", false),
        ("unix:@a", "unix:@a", true),
        ("unix:./@a", "unix:@a", false),
        ("127.0.0.1:80", "unix:/a", false),
    ] {
        let parse = |text: &str| text.parse::<Address>().unwrap();
        assert_eq!(parse(wanted).covers(&parse(bound)), covers, "{wanted} {bound}");
    }
}

#[test]
fn a_family_that_is_missing_has_a_substitute() {
    for (address, candidates) in [
        ("127.0.0.1:80", "127.0.0.1:80"),
        (":80", "[::]:80 0.0.0.0:80"),
        ("localhost:80", "127.0.0.1:80 [::1]:80"),
        ("unix:/a", ""),
    ] {
        let all = address.parse::<Address>().unwrap().candidates();
        let all: Vec<_> = all.iter().map(SocketAddr::to_string).collect();
        assert_eq!(all.join(" "), candidates);
    }
}
