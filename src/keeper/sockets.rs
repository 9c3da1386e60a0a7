//! [`Sockets`]: the listening sockets that a keeper holds for its children.
//!
//! Invariant: a socket has the same number for all children, and stays open until a child that
//! serves does not listen on it, or the keeper stops. Sockets that are bound here stay blocking,
//! because other programs expect that. The keeper accepts nothing.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use socket2::{SockRef, Socket};

use crate::address::Address;
use crate::descriptors::inode;
use crate::error::during;
use crate::listen::bind::{self, TcpBind};
use crate::listen::bind_error::BindError;
use crate::listen::inherited;
use crate::listen::passing::Passed;
use crate::listen::socket_file::{SocketFile, is_same_file};
use crate::restart::message::{Brought, Offered};

/// A listening socket that the keeper holds.
pub(crate) struct KeptSocket {
    pub(crate) number: u32,
    pub(crate) socket: Socket,
    pub(crate) address: Address,
    /// The keeper or a child of it has bound the socket.
    pub(crate) is_own: bool,
    /// `true` if a child has bound the socket. Only a child that asks for its address takes it
    /// (rule K10).
    pub(crate) is_brought: bool,
    /// The path of a Unix socket's file, if it is known.
    pub(crate) path: Option<PathBuf>,
    pub(crate) name: Option<String>,
    /// Children have the socket as their standard input, too.
    pub(crate) is_input: bool,
}

/// The listening sockets of a keeper.
#[derive(Default)]
pub(crate) struct Sockets {
    kept: Vec<KeptSocket>,
    /// The files of own sockets. The field is dropped last, and the drop removes files that are
    /// stale by then.
    files: Vec<OwnFile>,
}

/// The file of a socket that the keeper or a child of it has bound.
struct OwnFile {
    file: SocketFile,
    /// The permissions of the file.
    mode: u32,
}

impl OwnFile {
    /// Returns the file of the socket at `path`, or `None` if there is no such file.
    fn at(path: &Path) -> Option<Self> {
        SocketFile::at(path).ok().and_then(Self::of)
    }

    fn of(file: SocketFile) -> Option<Self> {
        let mode = fs::symlink_metadata(file.path()).ok()?.permissions().mode() & 0o777;
        Some(Self { file, mode })
    }
}

impl Sockets {
    /// Takes the sockets that this process was started with, and binds the addresses in `listen`.
    ///
    /// # Errors
    ///
    /// Returns one line that names the socket or address that cannot be taken or bound, and the
    /// reason.
    pub(crate) fn new(listen: &[Address]) -> io::Result<Self> {
        let mut sockets = Self::default();
        sockets.take_passed()?;
        sockets.bind(listen)?;
        Ok(sockets)
    }

    /// Takes the sockets that this process was started with.
    fn take_passed(&mut self) -> io::Result<()> {
        // The standard input comes first, because taking a socket closes its copies.
        let input = input();
        for (socket, passed) in inherited::all().map_err(during("inherited sockets"))? {
            let is_input = Some(inode(&socket)?) == input;
            self.take(socket, passed, is_input)?;
        }
        if input.is_some() && !self.kept.iter().any(|kept| kept.is_input) {
            if let Some((socket, passed)) = inherited::matching(&Address::Fd(0))? {
                self.take(socket, passed, true)?;
            }
        }
        Ok(())
    }

    /// Binds the addresses on which no socket of the keeper listens yet. The sockets get numbers in
    /// the order of `listen`.
    fn bind(&mut self, listen: &[Address]) -> io::Result<()> {
        // `[::]` leaves IPv4 alone if the keeper listens there already, so it comes last.
        let mut bound: Vec<Option<(Socket, Option<SocketFile>)>> = Vec::new();
        bound.resize_with(listen.len(), || None);
        let mut order: Vec<_> = (0..listen.len()).collect();
        order.sort_by_key(|index| is_every_ipv6(&listen[*index]));
        for index in order {
            let address = &listen[index];
            if let Some(kept) = self.kept.iter_mut().find(|kept| kept.serves(address)) {
                // The operator lists this address, so every child may take the socket, even if the
                // keeper above reserved it for a child that asks.
                kept.is_brought = false;
            } else {
                let step = during(format!("cannot listen on {address}"));
                bound[index] = Some(bind_one(address).map_err(step)?);
            }
        }
        for (socket, file) in bound.into_iter().flatten() {
            let address = Address::of(&socket)?;
            let path = file.as_ref().map(|file| file.path().to_owned());
            self.files.extend(file.and_then(OwnFile::of));
            let number = self.next_number();
            self.kept.push(KeptSocket {
                number,
                socket,
                address,
                is_own: true,
                is_brought: false,
                path,
                name: None,
                is_input: false,
            });
        }
        Ok(())
    }

    /// Takes over the sockets that this process had before it replaced its program.
    pub(crate) fn resume(kept: Vec<KeptSocket>) -> Self {
        let own = kept.iter().filter(|kept| kept.is_own);
        let files = own.filter_map(|kept| OwnFile::at(kept.path.as_deref()?)).collect();
        Self { kept, files }
    }

    fn take(&mut self, socket: Socket, passed: Passed, is_input: bool) -> io::Result<()> {
        let address = Address::of(&socket)?;
        // A keeper above this one may have given the socket a number, which means nothing to the
        // children.
        let number = self.next_number();
        self.kept.push(KeptSocket {
            number,
            socket,
            address,
            is_own: false,
            is_brought: passed.is_brought,
            path: passed.file,
            name: passed.name,
            is_input,
        });
        Ok(())
    }

    /// Keeps a socket that a child has bound.
    ///
    /// # Errors
    ///
    /// Returns an error if the descriptor is not a listening socket.
    pub(crate) fn bring(
        &mut self,
        number: u32,
        socket: OwnedFd,
        Brought { is_own, file: path }: Brought,
    ) -> io::Result<()> {
        let socket = Socket::from(socket);
        let address = Address::of(&socket)?;
        if is_own {
            self.files.extend(path.as_deref().and_then(OwnFile::at));
        }
        self.kept.push(KeptSocket {
            number,
            socket,
            address,
            is_own,
            is_brought: true,
            path,
            name: None,
            is_input: false,
        });
        Ok(())
    }

    /// Returns the sockets.
    pub(crate) fn all(&self) -> &[KeptSocket] {
        &self.kept
    }

    /// Returns the numbers of the sockets.
    pub(crate) fn numbers(&self) -> Vec<u32> {
        self.kept.iter().map(|kept| kept.number).collect()
    }

    /// Binds each own Unix socket anew whose file was removed, for example by a program that cleans
    /// up /tmp. Without that, the next child would have a socket that no client finds.
    pub(crate) fn rebind_removed(&mut self) {
        for index in 0..self.kept.len() {
            let number = self.next_number();
            let kept = &mut self.kept[index];
            let is_file = |own: &&mut OwnFile| Some(own.file.path()) == kept.path.as_deref();
            let Some(own) = self.files.iter_mut().find(is_file).filter(|_| kept.is_own) else {
                continue;
            };
            match own.file.is_there() {
                Ok(true) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => kept.rebind(own, number),
                Ok(false) | Err(_) => log::warn!(
                    "keeper: another file has the name of {}, so no client finds this socket; \
                     remove that file, or stop the server that listens on it, and restart",
                    kept.address
                ),
            }
        }
    }

    /// Returns `true` if the keeper or a child has bound the socket and its file is still the same.
    fn is_own(&self, kept: &KeptSocket) -> bool {
        let is_file = |own: &&OwnFile| Some(own.file.path()) == kept.path.as_deref();
        let file = self.files.iter().find(is_file);
        kept.is_own && file.is_none_or(|own| own.file.is_there().unwrap_or(false))
    }

    /// Returns the facts about each socket that a child has to know, from descriptor 3 on.
    pub(crate) fn offer(&self) -> Vec<Offered> {
        let offered = self.kept.iter().map(|kept| Offered {
            number: kept.number,
            // If another program has put its file there, the child must not remove that file.
            is_own: self.is_own(kept),
            is_brought: kept.is_brought,
            file: kept.path.clone(),
        });
        offered.collect()
    }

    /// Returns the names of the sockets in the form of LISTEN_FDNAMES.
    pub(crate) fn names(&self) -> String {
        let names = self.kept.iter().map(|kept| kept.name.clone().unwrap_or_default());
        names.collect::<Vec<_>>().join(":")
    }

    /// Returns the inode of the socket with this number.
    pub(crate) fn inode(&self, number: u32) -> Option<u64> {
        let kept = self.kept.iter().find(|kept| kept.number == number)?;
        inode(&kept.socket).ok()
    }

    /// Closes the sockets whose numbers are not in `wanted`, and returns their addresses.
    pub(crate) fn close_others(&mut self, wanted: &[u32]) -> Vec<Address> {
        let kept = std::mem::take(&mut self.kept).into_iter();
        let (kept, others): (Vec<_>, Vec<_>) = kept.partition(|kept| wanted.contains(&kept.number));
        self.kept = kept;
        others.into_iter().map(|kept| kept.address).collect()
    }

    /// Closes all sockets. The files stay until the keeper ends.
    pub(crate) fn let_go(&mut self) {
        self.kept.clear();
    }

    fn next_number(&self) -> u32 {
        self.kept.iter().map(|kept| kept.number + 1).max().unwrap_or(0)
    }
}

impl KeptSocket {
    /// Binds a Unix socket whose file was removed anew. The new number makes this another listener,
    /// because connections to the old socket must not go to the new one.
    fn rebind(&mut self, own: &mut OwnFile, number: u32) {
        let address = &self.address;
        match bind::unix(own.file.path(), Some(own.mode)) {
            Ok((socket, file)) => {
                log::warn!(
                    "keeper: the file of {address} was removed, so no client found the socket; it \
                     is bound anew"
                );
                own.file = file;
                self.socket = socket;
                self.number = number;
            }
            Err(error) => log::warn!(
                "keeper: the file of {address} was removed, and the socket cannot be bound \
                 anew: {}",
                error.worded(address)
            ),
        }
    }

    /// Returns `true` if this socket listens on `address`.
    fn serves(&self, address: &Address) -> bool {
        match (address, &self.address) {
            (Address::Fd(0), _) => self.is_input,
            (Address::Fd(fd), _) => {
                u32::try_from(*fd - crate::descriptors::FIRST) == Ok(self.number) && !self.is_own
            }
            (Address::Unix(wanted), Address::Unix(bound)) => {
                let path = self.path.as_deref().unwrap_or(bound);
                wanted == bound || is_same_file(wanted, path)
            }
            (wanted, bound) => wanted.covers(bound),
        }
    }
}

impl AsFd for KeptSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Returns the inode of the standard input, if it is a listening socket. Supervisor's
/// `[fcgi-program]` passes one there.
fn input() -> Option<u64> {
    let input = io::stdin();
    SockRef::from(&input).is_listener().ok().filter(|is_listener| *is_listener)?;
    inode(&input).ok()
}

/// Binds an address and listens on it.
fn bind_one(address: &Address) -> io::Result<(Socket, Option<SocketFile>)> {
    let worded = |error: BindError| error.worded(address);
    match address {
        Address::Unix(path) => {
            let (socket, file) = bind::unix(path, None).map_err(worded)?;
            Ok((socket, Some(file)))
        }
        Address::Abstract(name) => Ok((bind::abstract_name(name).map_err(worded)?, None)),
        Address::Fd(fd) => {
            let message = format!("descriptor {fd} is not a listening socket that was passed");
            Err(io::Error::new(io::ErrorKind::InvalidInput, message))
        }
        _ => Ok((TcpBind::first(&address.candidates(), false)?, None)),
    }
}

/// Returns `true` for an address such as `[::]:8082`, which means every interface in IPv6.
fn is_every_ipv6(address: &Address) -> bool {
    matches!(address, Address::Tcp(addr) if addr.is_ipv6() && addr.ip().is_unspecified())
}

#[cfg(test)]
mod tests;
