//! Letting things come to their end.

use spanblk::reactor::pipeline::Pipeline;

use super::world::World;

impl World {
    /// Lets happen what can happen by itself.
    pub fn rest(&mut self) -> Result<(), String> {
        while self.step()? {
            self.reap()?;
        }
        self.reap()
    }

    /// The same, until no request is left: writes that wait for room are given up.
    pub fn settle(&mut self) -> Result<(), String> {
        loop {
            let mut post = self.post.clone();
            self.owner.tick(self.now, &mut post);
            let mut moved = false;
            while self.step()? {
                self.reap()?;
                moved = true;
            }
            self.reap()?;
            if self.pipelines.iter().all(Pipeline::is_idle) {
                return Ok(());
            }
            if !moved {
                return Err("a request is stuck".to_owned());
            }
        }
    }
}
