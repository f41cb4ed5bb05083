//! A Hugging Face hub of one repository on the loopback interface, for tests of `forerun pull`: the
//! routes the client uses, ranges included.

use sha2::Digest;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

struct Shared {
    id: String,
    files: BTreeMap<String, Vec<u8>>,
    /// Request lines, each with its range.
    requests: Mutex<Vec<String>>,
}

/// A running hub; its thread ends with the process.
pub(crate) struct FakeHub {
    endpoint: String,
    shared: Arc<Shared>,
}

impl FakeHub {
    /// Starts a hub that has `files` in the repository `id`.
    pub(crate) fn start(id: &str, files: Vec<(&str, Vec<u8>)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("a bound port"));
        let files = files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect();
        let shared = Arc::new(Shared { id: id.to_owned(), files, requests: Mutex::default() });
        let served = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let served = served.clone();
                // A client that hangs up early is no failure of the hub.
                std::thread::spawn(move || serve(&served, stream).ok());
            }
        });
        Self { endpoint, shared }
    }

    /// Its address.
    pub(crate) fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// What it was asked, in order.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.shared.requests.lock().expect("no panic while held").clone()
    }
}

fn serve(hub: &Shared, stream: TcpStream) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (mut length, mut range) = (0, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or(0),
            "range" => range = Some(value.trim().to_owned()),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let asked = format!("{method} {path} {}", range.as_deref().unwrap_or_default());
    hub.requests.lock().expect("no panic while held").push(asked);
    let (status, headers, content) = answer(hub, path, range.as_deref());
    let mut stream = stream;
    write!(stream, "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}")?;
    write!(stream, "Content-Length: {}\r\n\r\n", content.len())?;
    if method != "HEAD" {
        stream.write_all(&content)?;
    }
    stream.flush()
}

/// Status, headers and content of the answer to a path.
fn answer(hub: &Shared, path: &str, range: Option<&str>) -> (&'static str, String, Vec<u8>) {
    let path = path.split('?').next().unwrap_or_default();
    let json = "Content-Type: application/json\r\n".to_owned();
    let missing = ("404 Not Found", String::new(), vec![]);
    let api = format!("/api/models/{}", hub.id);
    if let Some(rest) = path.strip_prefix(&api) {
        let entries: Vec<_> = hub.files.iter().map(|(name, bytes)| entry(name, bytes)).collect();
        return match rest.split('/').nth(1) {
            None | Some("revision") => {
                let info = serde_json::json!({ "id": hub.id, "sha": COMMIT, "siblings": entries });
                ("200 OK", json, info.to_string().into_bytes())
            }
            _ => missing,
        };
    }
    let resolve = format!("/{}/resolve/", hub.id);
    let file = path.strip_prefix(&resolve).and_then(|rest| rest.split_once('/'));
    let Some(bytes) = file.and_then(|(_, name)| hub.files.get(name)) else { return missing };
    let tag = format!("\"{:x}-{}\"", bytes.len(), bytes.first().copied().unwrap_or_default());
    let headers = format!("ETag: {tag}\r\nX-Repo-Commit: {COMMIT}\r\nAccept-Ranges: bytes\r\n");
    let Some((from, to)) = range.and_then(|r| r.strip_prefix("bytes=")?.split_once('-')) else {
        return ("200 OK", headers, bytes.clone());
    };
    let from: usize = from.parse().unwrap_or(0);
    let to = to.parse().map_or(bytes.len(), |to: usize| to + 1).min(bytes.len());
    ("206 Partial Content", headers, bytes[from.min(to)..to].to_vec())
}

/// Safetensors lie in large file storage, which has checksums; nothing else does.
fn entry(name: &str, bytes: &[u8]) -> serde_json::Value {
    let mut entry = serde_json::json!({ "rfilename": name, "size": bytes.len() });
    entry["blobId"] = format!("{}{}", bytes.len(), name.replace('/', "-")).into();
    if name.ends_with(".safetensors") {
        let digest = sha2::Sha256::digest(bytes);
        let sha256: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        entry["lfs"] = serde_json::json!({ "sha256": sha256, "size": bytes.len() });
    }
    entry
}
