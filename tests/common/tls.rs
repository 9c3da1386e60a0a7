//! TLS: a certificate for `localhost`, and clients that trust it.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

use futures_rustls::pki_types::{CertificateDer, ServerName};
use futures_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use super::Duplex;

/// A client's end of a connection in TLS, and its socket.
pub type TlsStream = StreamOwned<ClientConnection, TcpStream>;

impl Duplex for TlsStream {
    fn half_close(&mut self) {
        self.conn.send_close_notify();
        self.conn.complete_io(&mut self.sock).unwrap();
        self.sock.half_close();
    }
}

/// Makes `cert.pem` and `key.pem` in `dir`.
pub fn certificate(dir: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    fs::write(dir.join("cert.pem"), made.cert.pem()).unwrap();
    fs::write(dir.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

/// Returns a client over `socket` that trusts this certificate alone. The handshake begins with the
/// first byte that is written or read.
pub fn tls_client(trusted: &CertificateDer<'static>, socket: TcpStream) -> TlsStream {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    StreamOwned::new(ClientConnection::new(Arc::new(config), name).unwrap(), socket)
}
