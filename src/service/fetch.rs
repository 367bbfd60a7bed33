//! The other end of the HTTP port: what a daemon tells about itself.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::ClientError;
use super::client::ClientOptions;
use super::tls::Socket;

/// Most bytes of an answer.
const MAX_ANSWER: u64 = 16 << 20;

/// Gets a page of a daemon's HTTP port, with a token unless it is empty: the status line, and what follows the head.
///
/// # Errors
/// [`ClientError`]; what answers is not HTTP, or nothing does within the options' patience.
pub async fn fetch(
    address: &str,
    path: &str,
    token: &str,
    options: &ClientOptions,
) -> Result<(String, String), ClientError> {
    let silent = |_| ClientError::Silent { address: address.to_owned(), patience: options.patience };
    let io = |source| ClientError::Io { address: address.to_owned(), source };
    let answer = timeout(options.patience, ask(address, path, token, options)).await.map_err(silent)?.map_err(io)?;
    let answer = String::from_utf8_lossy(&answer);
    let Some((head, body)) = answer.split_once("\r\n\r\n").filter(|(head, _)| head.starts_with("HTTP/1.")) else {
        let why = if answer.as_bytes().starts_with(&[0x15, 0x03]) {
            "the server speaks TLS here: ask with --tls"
        } else {
            "what answers is not HTTP: http.listen is another port"
        };
        return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidData, why)));
    };
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}

async fn ask(address: &str, path: &str, token: &str, options: &ClientOptions) -> std::io::Result<Vec<u8>> {
    let socket = TcpStream::connect(address).await?;
    let mut socket: Socket = match &options.tls {
        None => Box::new(socket),
        Some(tls) => tls.connect(address, socket).await?,
    };
    let login = if token.is_empty() { String::new() } else { format!("Authorization: Bearer {token}\r\n") };
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{login}Connection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    match socket.take(MAX_ANSWER).read_to_end(&mut answer).await {
        // A server that hangs up without TLS' last words has still said everything.
        Err(e) if answer.is_empty() => Err(e),
        _ => Ok(answer),
    }
}
