// SPDX-License-Identifier: GPL-2.0
//! Serves a disk to QEMU: the protocol of network block devices, as much of it as QEMU's client
//! needs.
//!
//! The protocol is proto.md of the NBD project. After a handshake, in which the client asks for
//! options until it says "go", there are requests and replies. They are done one after the other,
//! so a flush covers every write that was answered before, and nothing that comes later.

use crate::disk::Disk;
use std::io;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;

const GREETING: &[u8; 16] = b"NBDMAGICIHAVEOPT";
/// Fixed newstyle, and no zeroes behind a reply that has no length.
const HANDSHAKE_FLAGS: u16 = 0b11;

const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPTION_ABORT: u32 = 2;
const OPTION_GO: u32 = 7;
/// The most bytes of an option: a name, and what the client wants to know.
const OPTION_LEN: u32 = 8192;

const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
/// Size and flags of the disk.
const INFO_EXPORT: u16 = 0;
/// It has flags, and can be told to flush.
const DISK_FLAGS: u16 = 0b101;

const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;
const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;
/// The most bytes of a request, by the protocol.
const REQUEST_LEN: u32 = 32 << 20;
const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// Serves a disk until the client is gone.
pub(crate) fn serve(mut client: impl Read + Write, disk: &mut Disk) -> io::Result<()> {
    match handshake(&mut client, disk).and_then(|()| requests(&mut client, disk)) {
        Err(error) if is_end(&error) => Ok(()),
        result => result,
    }
}

/// Whether this says that the client is gone, maybe in the middle of something.
fn is_end(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

fn handshake(client: &mut (impl Read + Write), disk: &Disk) -> io::Result<()> {
    client.write_all(GREETING)?;
    client.write_all(&HANDSHAKE_FLAGS.to_be_bytes())?;
    let _flags: [u8; 4] = take(client)?;
    loop {
        expect(u64::from_be_bytes(take(client)?) == OPTION_MAGIC)?;
        let option = u32::from_be_bytes(take(client)?);
        let len = u32::from_be_bytes(take(client)?);
        expect(len <= OPTION_LEN)?;
        take_bytes(client, len)?;
        let mut reply = |kind: u32, data: &[u8]| {
            let mut bytes = OPTION_REPLY_MAGIC.to_be_bytes().to_vec();
            for number in [option, kind, u32::try_from(data.len()).unwrap_or(u32::MAX)] {
                bytes.extend_from_slice(&number.to_be_bytes());
            }
            bytes.extend_from_slice(data);
            client.write_all(&bytes)
        };
        match option {
            OPTION_GO => {
                let mut info = INFO_EXPORT.to_be_bytes().to_vec();
                info.extend_from_slice(&(disk.len() as u64).to_be_bytes());
                info.extend_from_slice(&DISK_FLAGS.to_be_bytes());
                reply(REPLY_INFO, &info)?;
                return reply(REPLY_ACK, &[]);
            }
            OPTION_ABORT => {
                reply(REPLY_ACK, &[])?;
                return Err(ErrorKind::UnexpectedEof.into());
            }
            _ => reply(REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn requests(client: &mut (impl Read + Write), disk: &mut Disk) -> io::Result<()> {
    loop {
        expect(u32::from_be_bytes(take(client)?) == REQUEST_MAGIC)?;
        let _flags: [u8; 2] = take(client)?;
        let kind = u16::from_be_bytes(take(client)?);
        let cookie: [u8; 8] = take(client)?;
        let offset = u64::from_be_bytes(take(client)?);
        let len = u32::from_be_bytes(take(client)?);
        expect(len <= REQUEST_LEN)?;
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let result = match kind {
            READ => disk.read(offset, len as usize),
            WRITE => {
                let bytes = take_bytes(client, len)?;
                disk.write(offset, bytes).map(|()| Vec::new())
            }
            FLUSH => disk.flush().map(|()| Vec::new()),
            DISCONNECT => return Ok(()),
            _ => Err(ErrorKind::InvalidInput.into()),
        };
        let (error, data) = match result {
            Ok(data) => (0, data),
            Err(error) if error.kind() == ErrorKind::InvalidInput => (EINVAL, Vec::new()),
            Err(_) => (EIO, Vec::new()),
        };
        let mut reply = REPLY_MAGIC.to_be_bytes().to_vec();
        reply.extend_from_slice(&error.to_be_bytes());
        reply.extend_from_slice(&cookie);
        reply.extend_from_slice(&data);
        client.write_all(&reply)?;
    }
}

fn take<const N: usize>(client: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn take_bytes(client: &mut impl Read, len: u32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; len as usize];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn expect(right: bool) -> io::Result<()> {
    right
        .then_some(())
        .ok_or_else(|| io::Error::new(ErrorKind::InvalidData, "this is not the protocol of NBD"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;
    use std::thread;
    use std::thread::JoinHandle;

    const LEN: usize = 1 << 20;

    fn start() -> (UnixStream, JoinHandle<(Disk, io::Result<()>)>) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN as u64).unwrap();
        let (client, server) = UnixStream::pair().unwrap();
        let serve = move || {
            let mut disk = Disk::new(file).unwrap();
            let result = serve(server, &mut disk);
            (disk, result)
        };
        (client, thread::spawn(serve))
    }

    fn option(client: &mut UnixStream, option: u32, data: &[u8]) -> u32 {
        client.write_all(b"IHAVEOPT").unwrap();
        client.write_all(&option.to_be_bytes()).unwrap();
        client
            .write_all(&(data.len() as u32).to_be_bytes())
            .unwrap();
        client.write_all(data).unwrap();
        option_reply(client, option)
    }

    fn option_reply(client: &mut UnixStream, option: u32) -> u32 {
        assert_eq!(
            u64::from_be_bytes(take(client).unwrap()),
            OPTION_REPLY_MAGIC
        );
        assert_eq!(u32::from_be_bytes(take(client).unwrap()), option);
        let kind = u32::from_be_bytes(take(client).unwrap());
        let len = u32::from_be_bytes(take(client).unwrap());
        let data = take_bytes(client, len).unwrap();
        if kind == REPLY_INFO {
            assert_eq!(
                data[..10],
                [&[0, 0][..], &(LEN as u64).to_be_bytes()].concat()
            );
        }
        kind
    }

    fn go(client: &mut UnixStream) {
        assert_eq!(take(client).unwrap(), *GREETING);
        assert_eq!(take(client).unwrap(), HANDSHAKE_FLAGS.to_be_bytes());
        client.write_all(&3_u32.to_be_bytes()).unwrap();
        assert_eq!(option(client, 8, b""), REPLY_UNSUPPORTED);
        assert_eq!(option(client, OPTION_GO, &[0; 6]), REPLY_INFO);
        assert_eq!(option_reply(client, OPTION_GO), REPLY_ACK);
    }

    /// Sends a request; gives the error of the reply.
    fn request(client: &mut UnixStream, kind: u16, offset: u64, len: u32, data: &[u8]) -> u32 {
        let mut bytes = REQUEST_MAGIC.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&kind.to_be_bytes());
        bytes.extend_from_slice(b"a cookie");
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(data);
        client.write_all(&bytes).unwrap();
        assert_eq!(u32::from_be_bytes(take(client).unwrap()), REPLY_MAGIC);
        let error = u32::from_be_bytes(take(client).unwrap());
        assert_eq!(&take(client).unwrap(), b"a cookie");
        error
    }

    #[test]
    fn whole_conversation() {
        let (mut client, server) = start();
        go(&mut client);
        assert_eq!(request(&mut client, WRITE, 512, 4, b"kept"), 0);
        assert_eq!(request(&mut client, FLUSH, 0, 0, b""), 0);
        assert_eq!(request(&mut client, WRITE, 9000, 4, b"lost"), 0);
        assert_eq!(request(&mut client, READ, 9000, 4, b""), 0);
        assert_eq!(&take(&mut client).unwrap(), b"lost");
        assert_eq!(request(&mut client, READ, LEN as u64, 1, b""), EINVAL);
        assert_eq!(request(&mut client, 4, 0, 1, b""), EINVAL);
        // In the middle of a request.
        client.write_all(&REQUEST_MAGIC.to_be_bytes()).unwrap();
        drop(client);
        let (disk, result) = server.join().unwrap();
        result.unwrap();
        assert_eq!(disk.read(512, 4).unwrap(), b"kept");
    }

    #[test]
    fn rubbish() {
        let (mut client, server) = start();
        client.write_all(&[7; 100]).unwrap();
        let (_, result) = server.join().unwrap();
        assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidData);
    }
}
