import java.util.HashMap;
import java.util.HashSet;
import java.util.Map;
import java.util.Set;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.processor.StateStore;
import org.apache.kafka.streams.processor.StateStoreContext;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.processor.internals.InternalProcessorContext;
import org.apache.kafka.streams.processor.internals.ProcessorNode;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.internals.CacheFlushListener;
import org.apache.kafka.streams.state.internals.CachedStateStore;

/**
 * Kafka Streams as fast as we could make it: a task adds up its partition in hash maps and sends what was added since
 * the last commit, in the same transaction. It leans on classes that Streams keeps for itself: only a store that counts
 * as a cache is told of a commit in time to send. No changelog, no topic in between. Its request ids would have to be
 * read again from the log after a restart, as a meter does; that is left out, to its advantage.
 */
final class ByHand {
  private static final long HORIZON_MS = 7_000; // of the log's time, as the meter beside it

  private ByHand() {}

  static Topology of(String input, String output, boolean dedup) {
    Topology made = new Topology();
    made.addSource("log", Serdes.String().deserializer(), Serdes.ByteArray().deserializer(), input);
    made.addProcessor("add", () -> new Adder(dedup), "log");
    made.addStateStore(new SumsBuilder(), "add");
    made.addSink("rows", output, Serdes.String().serializer(), Serdes.ByteArray().serializer(), "add");
    return made;
  }

  private static final class Adder implements Processor<String, byte[], String, byte[]> {
    private final boolean dedup;
    private Set<String> ids = new HashSet<>();
    private Set<String> before = new HashSet<>(); // ids of the horizon before that of `ids`
    private long forgetAt;
    private Sums sums;

    Adder(boolean dedup) {
      this.dedup = dedup;
    }

    @Override
    public void init(ProcessorContext<String, byte[]> context) {
      sums = context.getStateStore("sums");
      sums.sendThrough((InternalProcessorContext<String, byte[]>) context);
    }

    @Override
    public void process(Record<String, byte[]> record) {
      Usage usage = Usage.parse(record.value());
      if (!dedup || isFirst(usage.requestId, record.timestamp())) {
        usage.addTo(sums.of(usage.window(), usage.key()));
        Progress.COUNTED.increment();
      }
    }

    private boolean isFirst(String id, long time) {
      if (time >= forgetAt) {
        before = ids;
        ids = new HashSet<>(before.size() * 2);
        forgetAt = time + HORIZON_MS;
      }
      return !before.contains(id) && ids.add(id);
    }
  }

  /** What was added since the last commit, by window and key. */
  private static final class Sums implements StateStore, CachedStateStore<String, byte[]> {
    private final Map<Long, Map<String, long[]>> windows = new HashMap<>();
    private InternalProcessorContext<String, byte[]> context;
    private ProcessorNode<?, ?, ?, ?> node;
    private boolean open;

    void sendThrough(InternalProcessorContext<String, byte[]> given) {
      context = given;
      node = given.currentNode();
    }

    long[] of(long window, String key) {
      return windows.computeIfAbsent(window, start -> new HashMap<>())
          .computeIfAbsent(key, row -> new long[Usage.COUNTERS]);
    }

    @Override
    public void flushCache() {
      ProcessorNode<?, ?, ?, ?> current = context.currentNode();
      context.setCurrentNode(node);
      windows.forEach((window, rows) -> rows.forEach(
          (key, sums) -> context.forward(new Record<>(key, Usage.row(window, key, sums), window))));
      context.setCurrentNode(current);
      windows.clear();
    }

    @Override
    public void clearCache() {
      windows.clear();
    }

    @Override
    public boolean setFlushListener(CacheFlushListener<String, byte[]> listener, boolean sendOldValues) {
      return false;
    }

    @Override
    public String name() {
      return "sums";
    }

    @Override
    public void init(StateStoreContext given, StateStore root) {
      given.register(root, (key, value) -> {});
      open = true;
    }

    @Override
    public void close() {
      open = false;
    }

    @Override
    public boolean persistent() {
      return false;
    }

    @Override
    public boolean isOpen() {
      return open;
    }
  }

  private static final class SumsBuilder implements StoreBuilder<Sums> {
    @Override
    public StoreBuilder<Sums> withCachingEnabled() {
      return this;
    }

    @Override
    public StoreBuilder<Sums> withCachingDisabled() {
      return this;
    }

    @Override
    public StoreBuilder<Sums> withLoggingEnabled(Map<String, String> settings) {
      return this;
    }

    @Override
    public StoreBuilder<Sums> withLoggingDisabled() {
      return this;
    }

    @Override
    public Sums build() {
      return new Sums();
    }

    @Override
    public Map<String, String> logConfig() {
      return Map.of();
    }

    @Override
    public boolean loggingEnabled() {
      return false;
    }

    @Override
    public String name() {
      return "sums";
    }
  }
}
