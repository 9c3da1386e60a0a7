//! HTTPS with rustls. The server is an echo, and at its stop it loses neither a request nor a
//! handshake that has begun.
//!
//! Run with:
//!
//! ```
//! openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
//!     -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout key.pem -out cert.pem
//! cargo run --example tls -- 127.0.0.1:8443 cert.pem key.pem
//! ```
//!
//! Then try `curl --cacert cert.pem https://localhost:8443 -d hello`. `/name` shows the facts of
//! the handshake that the handler can see. Stop the server with Ctrl-C. Under a keeper, a successor
//! reads a renewed certificate.

use std::io;
use std::iter;
use std::sync::Arc;

use futures_rustls::TlsAcceptor;
use futures_rustls::pki_types::pem::{self, PemObject};
use futures_rustls::pki_types::{CertificateDer, PrivateKeyDer};
use futures_rustls::rustls::ServerConfig;
use smol_graceful::{
    Connection, ConnectionInfo, Listener, Method, Outcome, Request, Response, Result, ServeError,
    Server, StatusCode, run,
};

/// The name that the client has asked for in the handshake (SNI).
struct ServerName(String);

async fn handle(mut request: Request) -> Result<Response> {
    let connection = ConnectionInfo::of(&request);
    Ok(match request.method() {
        Method::Get if request.url().path() == "/name" => {
            let name = connection.get().map_or("none", |ServerName(name)| name);
            format!("{}, asked for as {name}\n", request.url()).into()
        }
        Method::Get => "okay\n".into(),
        Method::Post => request.take_body().into(),
        _ => Response::new(StatusCode::MethodNotAllowed),
    })
}

/// Returns a TLS acceptor with the certificate chain and the key of two PEM files.
fn acceptor(chain: &str, key: &str) -> io::Result<TlsAcceptor> {
    let named = |file| move |error: pem::Error| io::Error::other(format!("{file}: {error}"));
    let certificates = CertificateDer::pem_file_iter(chain)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .and_then(|all| if all.is_empty() { Err(pem::Error::NoItemsFound) } else { Ok(all) })
        .map_err(named(chain))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(named(key))?;
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(certificates, secret)
        .map_err(|error| io::Error::other(format!("{chain} and {key}: {error}")))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Listens. Each connection begins with a handshake, in its own task.
fn listen(address: &str, acceptor: TlsAcceptor) -> io::Result<Listener> {
    let listener = Listener::bind(address)?;
    Ok(listener.wrap(move |connection| {
        let handshake = acceptor.accept(connection);
        async move {
            let stream = handshake.await?;
            let name = stream.get_ref().1.server_name().map(str::to_owned);
            let connection = Connection::new(stream).https();
            Ok(match name {
                Some(name) => connection.with(ServerName(name)),
                None => connection,
            })
        }
    }))
}

fn main() -> Result<Outcome, ServeError> {
    env_logger::init_from_env(env_logger::Env::default().default_filter_or("info"));
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [address, chain, key] = &*args else {
        return Err(io::Error::other("`tls ADDR CERT KEY`: an address and two PEM files").into());
    };
    let acceptor = acceptor(chain, key)?;
    // `run` calls `listen` after it has set up the signals.
    run(Server::new(handle), iter::once_with(|| listen(address, acceptor)))
}
