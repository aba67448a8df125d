import com.fasterxml.jackson.core.JsonFactory;
import com.fasterxml.jackson.core.JsonParser;
import com.fasterxml.jackson.core.JsonToken;
import java.io.IOException;
import java.nio.charset.StandardCharsets;

/** What a record says, read with Jackson's streaming parser, its fastest. Fields are public: so Flink knows it as a POJO. */
public class Usage {
  static final int COUNTERS = 6; // requests and five counts of tokens
  static final long WINDOW_MS = 60_000;

  private static final JsonFactory JSON = new JsonFactory();
  private static final String[] NAMES = {
    "requests", "input_tokens", "cached_input_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens"
  };

  public String requestId;
  public long timestamp; // event time, ms
  public String user;
  public String model;
  public String chip;
  public long input;
  public long cached;
  public long written;
  public long output;
  public long reasoning;

  static Usage parse(byte[] line) {
    Usage found = new Usage();
    try (JsonParser json = JSON.createParser(line)) {
      json.nextToken();
      for (String name = json.nextFieldName(); name != null; name = json.nextFieldName()) {
        JsonToken value = json.nextToken();
        switch (name) {
          case "request_id" -> found.requestId = json.getText();
          case "timestamp" -> found.timestamp = json.getLongValue();
          case "user" -> found.user = json.getText();
          case "model" -> found.model = json.getText();
          case "chip" -> found.chip = json.getText();
          case "input_tokens" -> found.input = json.getLongValue();
          case "cached_input_tokens" -> found.cached = json.getLongValue();
          case "cache_write_tokens" -> found.written = json.getLongValue();
          case "output_tokens" -> found.output = json.getLongValue();
          case "reasoning_tokens" -> found.reasoning = json.getLongValue();
          default -> json.skipChildren();
        }
      }
      return found;
    } catch (IOException error) {
      throw new IllegalStateException("the log of this benchmark has no malformed records", error);
    }
  }

  /** Of the row, without its window. No name in the log holds a tab. */
  String key() {
    return user + '\t' + model + '\t' + chip;
  }

  long window() {
    return timestamp - timestamp % WINDOW_MS;
  }

  void addTo(long[] sums) {
    sums[0]++;
    sums[1] += input;
    sums[2] += cached;
    sums[3] += written;
    sums[4] += output;
    sums[5] += reasoning;
  }

  /** A row as a line of JSON. No name in the log needs an escape. */
  static byte[] row(long window, String key, long[] sums) {
    int model = key.indexOf('\t');
    int chip = key.indexOf('\t', model + 1);
    StringBuilder line = new StringBuilder(300).append("{\"window_start\": ").append(window);
    line.append(", \"user\": \"").append(key, 0, model);
    line.append("\", \"model\": \"").append(key, model + 1, chip);
    line.append("\", \"chip\": \"").append(key, chip + 1, key.length()).append('"');
    for (int i = 0; i < COUNTERS; i++) {
      line.append(", \"").append(NAMES[i]).append("\": ").append(sums[i]);
    }
    return line.append('}').toString().getBytes(StandardCharsets.ISO_8859_1);
  }
}
