//! The `spanblk` program: parse the command line and run it.

fn main() -> std::process::ExitCode {
    abort_on_panic();
    spanblk::cli::main()
}

/// A daemon that has lost a thread would leave guests waiting; one that has gone is restarted, and they go on. However it is compiled.
fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}
