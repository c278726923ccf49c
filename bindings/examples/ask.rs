//! Ask about a frame from Rust, through the C interface.
//!
//!     rustc -O ask.rs -L LIBRARY_FOLDER -l umd_edge
//!     ask BUNDLE ONNXRUNTIME QUESTION...
use std::env;
use std::ffi::{c_char, c_double, c_void, CStr, CString};
use std::mem::size_of;
use std::process::ExitCode;
use std::ptr;

const WIDTH: usize = 64;
const HEIGHT: usize = 48;

#[repr(C)]
struct OpenOptions {
    struct_size: u32,
    threads: i32,
    variant: *const c_char,
    onnxruntime: *const c_char,
    log: *const c_void,
    log_context: *mut c_void,
    allocator: *const c_void,
    sha256: *const c_char,
}

#[repr(C)]
struct Pixels {
    struct_size: u32,
    kind: i32,
    data: *const c_void,
    size: usize,
    stride: usize,
    width: u32,
    height: u32,
    photometric: i32,
    window: i32,
    window_low: i32,
    window_high: i32,
    window_centre: c_double,
    window_width: c_double,
    rescale_slope: c_double,
    rescale_intercept: c_double,
    dicom_modality: *const c_char,
    body_part: *const c_char,
}

#[repr(C)]
struct Item {
    struct_size: u32,
    positive: i32,
    name: *const c_char,
    probability: c_double,
    output: u32,
    logit: f32,
}

extern "C" {
    fn umd_open_options_init(options: *mut OpenOptions, size: usize);
    fn umd_pixels_init(pixels: *mut Pixels, size: usize);
    fn umd_item_init(item: *mut Item, size: usize);
    fn umd_open(path: *const c_char, options: *const OpenOptions, out: *mut *mut c_void) -> i32;
    fn umd_close(predictor: *mut c_void);
    fn umd_encode(
        predictor: *mut c_void,
        pixels: *const Pixels,
        call: *const c_void,
        out: *mut *mut c_void,
    ) -> i32;
    fn umd_image_free(image: *mut c_void);
    fn umd_ask(
        image: *mut c_void,
        question: *const c_char,
        task: *const c_char,
        call: *const c_void,
        out: *mut *mut c_void,
    ) -> i32;
    fn umd_get_item(result: *const c_void, index: u32, item: *mut Item) -> i32;
    fn umd_result_free(result: *mut c_void);
    fn umd_last_error() -> *const c_char;
}

/// Frees what it holds with the function that belongs to it.
struct Handle(*mut c_void, unsafe extern "C" fn(*mut c_void));

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the pointer came from the library and is freed once; NULL is allowed.
        unsafe { (self.1)(self.0) }
    }
}

fn text(pointer: *const c_char) -> String {
    // SAFETY: the library gives strings that end with NUL and live as long as their object.
    unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned()
}

fn check(status: i32) -> Result<(), String> {
    // SAFETY: takes nothing, and gives a string of this thread.
    if status == 0 { Ok(()) } else { Err(text(unsafe { umd_last_error() })) }
}

fn run(arguments: &[CString]) -> Result<(), String> {
    let frame: Vec<u8> = (0..WIDTH * HEIGHT).map(|i| (i * 7 % 256) as u8).collect();
    let mut predictor = Handle(ptr::null_mut(), umd_close);
    let mut image = Handle(ptr::null_mut(), umd_image_free);
    // SAFETY: every struct is filled by its init function, and lives as long as the call.
    unsafe {
        let mut options: OpenOptions = std::mem::zeroed();
        umd_open_options_init(&mut options, size_of::<OpenOptions>());
        options.onnxruntime = arguments[1].as_ptr();
        check(umd_open(arguments[0].as_ptr(), &options, &mut predictor.0))?;
        let mut pixels: Pixels = std::mem::zeroed();
        umd_pixels_init(&mut pixels, size_of::<Pixels>());
        pixels.data = frame.as_ptr().cast();
        pixels.size = frame.len();
        pixels.width = WIDTH as u32;
        pixels.height = HEIGHT as u32;
        check(umd_encode(predictor.0, &pixels, ptr::null(), &mut image.0))?;
    }
    for question in &arguments[2..] {
        let mut result = Handle(ptr::null_mut(), umd_result_free);
        // SAFETY: as above.
        let item = unsafe {
            check(umd_ask(image.0, question.as_ptr(), ptr::null(), ptr::null(), &mut result.0))?;
            let mut item: Item = std::mem::zeroed();
            umd_item_init(&mut item, size_of::<Item>());
            check(umd_get_item(result.0, 0, &mut item))?;
            item
        };
        println!("{}\t{}", text(item.name), item.probability);
    }
    Ok(())
}

fn main() -> ExitCode {
    let given = env::args().skip(1);
    let arguments: Vec<CString> = given.filter_map(|text| CString::new(text).ok()).collect();
    if arguments.len() < 3 {
        eprintln!("usage: ask BUNDLE ONNXRUNTIME QUESTION...");
        return ExitCode::from(2);
    }
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
