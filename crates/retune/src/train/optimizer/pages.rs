//! Pages of bytes, some in memory, the others in a file and moved while the processor computes.
//!
//! An update passes through all pages in one order, again and again. So the pages that stay in memory are always the same
//! ones, and a few buffers go around for the others: as soon as a page is done, a thread writes it back and reads the page
//! that is needed next into the same buffer. After the last page comes the first: it is read during the next pass through
//! the model.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use retune_formats::scratch::ScratchFile;
use retune_formats::{Error, Result};
use retune_tensor::memory::Counted;

/// A file of pages; tests put one in its place that fails.
pub(crate) trait Backing: Send + Sync {
    fn path(&self) -> &Path;
    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<()>;
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()>;
}

impl Backing for ScratchFile {
    fn path(&self) -> &Path {
        ScratchFile::path(self)
    }

    fn read_at(&self, out: &mut [u8], offset: u64) -> Result<()> {
        ScratchFile::read_at(self, out, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        ScratchFile::write_at(self, bytes, offset)
    }
}

/// A page's bytes in memory, counted as tensors are.
struct Buffer {
    bytes: Vec<u8>,
    _counted: Counted,
}

impl Buffer {
    fn zeros(bytes: usize) -> Buffer {
        Buffer { bytes: vec![0; bytes], _counted: Counted::new(bytes) }
    }
}

/// Where a page lies in the file.
#[derive(Clone, Copy)]
struct Span {
    offset: u64,
    bytes: usize,
}

enum Place {
    Memory(Buffer),
    /// The number of a page among those of the file.
    File(usize),
}

/// All pages; zeros at first.
pub(crate) struct Pages {
    places: Vec<Place>,
    stream: Option<Stream>,
}

impl Pages {
    /// Pages of these sizes, each in memory or not; `moving` buffers go around. `make` gives a file of so many bytes, all
    /// zeros, if one is needed.
    pub fn new(
        pages: impl Iterator<Item = (usize, bool)>,
        moving: usize,
        make: impl FnOnce(u64) -> Result<Arc<dyn Backing>>,
    ) -> Result<Pages> {
        let (mut spans, mut end) = (Vec::new(), 0);
        let places = pages
            .map(|(bytes, resident)| {
                if resident {
                    return Place::Memory(Buffer::zeros(bytes));
                }
                spans.push(Span { offset: end, bytes });
                end += bytes as u64;
                Place::File(spans.len() - 1)
            })
            .collect();
        let stream = if spans.is_empty() { None } else { Some(Stream::new(make(end)?, spans, moving)?) };
        Ok(Pages { places, stream })
    }

    /// Hands out every page in turn; `f` says whether it changed it.
    ///
    /// # Errors
    /// `f`'s, and those of the file. Pages are of no use after an error: the run must end.
    pub fn visit<E: From<Error>>(
        &mut self,
        mut f: impl FnMut(usize, &mut [u8]) -> Result<bool, E>,
    ) -> Result<(), E> {
        for (index, place) in self.places.iter_mut().enumerate() {
            match (place, &mut self.stream) {
                (Place::Memory(buffer), _) => {
                    f(index, &mut buffer.bytes)?;
                }
                (Place::File(page), Some(stream)) => {
                    let mut buffer = stream.fetch(*page)?;
                    let bytes = stream.spans[*page].bytes;
                    let changed = f(index, &mut buffer.bytes[..bytes])?;
                    stream.give_back(*page, buffer, changed);
                }
                (Place::File(_), None) => {}
            }
        }
        Ok(())
    }

    /// Waits until the file is up to date: before [`Pages::read`].
    pub fn settle(&mut self) -> Result<()> {
        self.stream.as_mut().map_or(Ok(()), Stream::settle)
    }

    /// Reads a part of a page, wherever it lies.
    pub fn read(&self, page: usize, from: usize, out: &mut [u8]) -> Result<()> {
        match (self.places.get(page), &self.stream) {
            (Some(Place::Memory(buffer)), _) => {
                out.copy_from_slice(&buffer.bytes[from..from + out.len()]);
                Ok(())
            }
            (Some(Place::File(page)), Some(stream)) => {
                stream.backing.read_at(out, stream.spans[*page].offset + from as u64)
            }
            _ => Ok(()),
        }
    }

    /// Time spent waiting for the disk.
    pub fn waited(&self) -> Duration {
        self.stream.as_ref().map_or(Duration::ZERO, |stream| stream.waited)
    }

    /// The file, if there is one.
    pub fn path(&self) -> Option<&Path> {
        self.stream.as_ref().map(|stream| stream.backing.path())
    }
}

/// The pages of a file, and the thread that moves them.
struct Stream {
    backing: Arc<dyn Backing>,
    spans: Vec<Span>,
    /// `None` only while this is dropped.
    jobs: Option<Sender<Job>>,
    done: Receiver<Done>,
    mover: Option<JoinHandle<()>>,
    /// Pages that were read and wait for their turn.
    here: BTreeMap<usize, Buffer>,
    /// Jobs that are not done.
    moving: usize,
    /// The page to be asked for next.
    ahead: usize,
    waited: Duration,
}

/// Write a page if it changed, then read another into the same buffer. Jobs are done in order, so what was written is read.
struct Job {
    buffer: Buffer,
    write: Option<Span>,
    page: usize,
    read: Span,
}

struct Done {
    buffer: Buffer,
    page: usize,
    result: Result<()>,
}

impl Stream {
    fn new(backing: Arc<dyn Backing>, spans: Vec<Span>, buffers: usize) -> Result<Stream> {
        let largest = spans.iter().map(|span| span.bytes).max().unwrap_or(0);
        let (jobs, todo) = channel::<Job>();
        let (finished, done) = channel();
        let disk = backing.clone();
        let work = move || {
            for mut job in todo {
                let result = job.run(disk.as_ref());
                let Job { buffer, page, .. } = job;
                if finished.send(Done { buffer, page, result }).is_err() {
                    break;
                }
            }
        };
        let mover = std::thread::Builder::new().name("pages".into()).spawn(work);
        let mover = mover.map_err(Error::io(backing.path(), "start a thread that moves the pages of"))?;
        let mut stream = Stream {
            backing,
            spans,
            jobs: Some(jobs),
            done,
            mover: Some(mover),
            here: BTreeMap::new(),
            moving: 0,
            ahead: 0,
            waited: Duration::ZERO,
        };
        for _ in 0..buffers.clamp(1, stream.spans.len()) {
            stream.send(Buffer::zeros(largest), None);
        }
        Ok(stream)
    }

    /// Has a buffer written, if so, and filled with the next page.
    fn send(&mut self, buffer: Buffer, write: Option<Span>) {
        let page = self.ahead;
        self.ahead = (page + 1) % self.spans.len();
        let job = Job { buffer, write, page, read: self.spans[page] };
        // The thread ends only with the sender.
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        self.moving += usize::from(sent);
    }

    fn give_back(&mut self, page: usize, buffer: Buffer, changed: bool) {
        self.send(buffer, changed.then_some(self.spans[page]));
    }

    /// The page, as soon as it is here.
    fn fetch(&mut self, page: usize) -> Result<Buffer> {
        loop {
            if let Some(buffer) = self.here.remove(&page) {
                return Ok(buffer);
            }
            self.receive()?;
        }
    }

    fn settle(&mut self) -> Result<()> {
        while self.moving > 0 {
            self.receive()?;
        }
        Ok(())
    }

    /// Waits for one job.
    fn receive(&mut self) -> Result<()> {
        let lost = || std::io::Error::other("a page was lost after an earlier error");
        let began = Instant::now();
        let done = if self.moving == 0 { None } else { self.done.recv().ok() };
        self.waited += began.elapsed();
        let done = done.ok_or_else(lost).map_err(Error::io(self.backing.path(), "go on with"))?;
        self.moving -= 1;
        done.result?;
        self.here.insert(done.page, done.buffer);
        Ok(())
    }
}

impl Job {
    fn run(&mut self, disk: &dyn Backing) -> Result<()> {
        if let Some(span) = self.write {
            disk.write_at(&self.buffer.bytes[..span.bytes], span.offset)?;
        }
        disk.read_at(&mut self.buffer.bytes[..self.read.bytes], self.read.offset)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(mover) = self.mover.take() {
            // It has nothing to say that was not said with a page.
            let _ = mover.join();
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// A file in memory whose calls fail from a given one on.
    pub struct Flaky {
        pub bytes: Mutex<Vec<u8>>,
        pub calls: AtomicUsize,
        pub fails_from: usize,
    }

    impl Flaky {
        pub fn new(bytes: u64, fails_from: usize) -> Flaky {
            let bytes = Mutex::new(vec![0; bytes as usize]);
            Flaky { bytes, calls: AtomicUsize::new(0), fails_from }
        }

        fn call(&self, doing: &'static str) -> Result<()> {
            let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
            match self.calls.fetch_add(1, Ordering::SeqCst) {
                call if call >= self.fails_from => Err(Error::io(self.path(), doing)(full)),
                _ => Ok(()),
            }
        }
    }

    impl Backing for Flaky {
        fn path(&self) -> &Path {
            Path::new("out/pages.tmp")
        }

        fn read_at(&self, out: &mut [u8], offset: u64) -> Result<()> {
            self.call("read")?;
            out.copy_from_slice(&self.bytes.lock().unwrap()[offset as usize..][..out.len()]);
            Ok(())
        }

        fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
            self.call("write")?;
            self.bytes.lock().unwrap()[offset as usize..][..bytes.len()].copy_from_slice(bytes);
            Ok(())
        }
    }

    /// Adds a number to every byte of all pages, `rounds` times; every second round only to odd pages.
    fn count_up(pages: &mut Pages, rounds: u8) -> Result<()> {
        for round in 0..rounds {
            pages.visit(|index, bytes| {
                let touched = round % 2 == 0 || index % 2 == 1;
                bytes.iter_mut().for_each(|b| *b += u8::from(touched) * (index as u8 + 1));
                Ok::<_, Error>(touched)
            })?;
        }
        pages.settle()
    }

    #[test]
    fn pages_keep_what_was_written_wherever_they_lie() {
        for moving in 1..=3 {
            for resident in [|_: usize| false, |i| i % 3 == 1, |_| true] {
                let sizes = [40, 7, 40, 13, 1].into_iter().enumerate().map(|(i, n)| (n, resident(i)));
                let make = |bytes| Ok(Arc::new(Flaky::new(bytes, usize::MAX)) as Arc<dyn Backing>);
                let mut pages = Pages::new(sizes, moving, make).unwrap();
                count_up(&mut pages, 5).unwrap();
                for (page, size) in [40, 7, 40, 13, 1].into_iter().enumerate() {
                    let mut out = vec![0; size];
                    pages.read(page, 0, &mut out).unwrap();
                    let rounds = if page % 2 == 1 { 5 } else { 3 };
                    assert_eq!(out, vec![rounds * (page as u8 + 1); size], "page {page}, {moving} moving");
                }
            }
        }
    }

    #[test]
    fn a_disk_that_fails_at_any_call_is_an_error_with_the_path_and_no_hang() {
        for fails_from in 0..20 {
            let make = |bytes| Ok(Arc::new(Flaky::new(bytes, fails_from)) as Arc<dyn Backing>);
            let mut pages = Pages::new([(10, false); 4].into_iter(), 2, make).unwrap();
            let message = count_up(&mut pages, 4).unwrap_err().to_string();
            assert!(message.contains("out/pages.tmp"), "{message}");
            let again = count_up(&mut pages, 4).unwrap_err();
            assert!(again.is_io(), "{again}");
        }
    }
}
