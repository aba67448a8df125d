import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.LongAdder;
import java.util.function.BooleanSupplier;

/** How many records were added to their rows, and when. */
final class Progress {
  static final LongAdder COUNTED = new LongAdder();

  private static final long SAMPLE_MS = 20;
  private static final List<String> TICKS = new ArrayList<>();

  private Progress() {}

  /** Returns when so many records are counted. */
  static void await(long records, BooleanSupplier alive) throws InterruptedException {
    for (long counted = 0; counted < records; Thread.sleep(SAMPLE_MS)) {
      counted = COUNTED.sum();
      if (counted > 0) {
        TICKS.add("[" + seconds() + ", " + counted + "]");
      }
      if (!alive.getAsBoolean() && counted < records) {
        throw new IllegalStateException("it ended after " + counted + " of " + records + " records");
      }
    }
  }

  /** To be called when everything is committed. */
  static void print() throws IOException {
    double end = seconds();
    String peak = Files.readAllLines(Path.of("/proc/self/status")).stream()
        .filter(line -> line.startsWith("VmHWM:")).findFirst().orElseThrow().replaceAll("[^0-9]", "");
    System.out.println("{\"ticks\": [" + String.join(", ", TICKS) + "], \"counted\": " + COUNTED.sum()
        + ", \"end\": " + end + ", \"peak_kib\": " + peak + "}");
  }

  private static double seconds() {
    return System.nanoTime() / 1e9;
  }
}
