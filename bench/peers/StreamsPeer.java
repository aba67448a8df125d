import java.nio.ByteBuffer;
import java.time.Duration;
import java.util.Properties;
import org.apache.kafka.clients.consumer.ConsumerConfig;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.KStream;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.state.Stores;
import org.apache.kafka.streams.state.WindowStore;
import org.apache.kafka.streams.state.WindowStoreIterator;

/** Kafka Streams with its own stores (RocksDB, changelog topics) and its DSL; or with stores made by hand (ByHand). */
public final class StreamsPeer {
  private static final Duration HORIZON = Duration.ofMinutes(1); // of request ids: RocksDB's segments are no shorter
  private static final Duration LATEST = Duration.ofDays(4); // some records of the log are three days late
  private static final Serde<long[]> SUMS = Serdes.serdeFrom(
      (topic, sums) -> {
        ByteBuffer bytes = ByteBuffer.allocate(8 * Usage.COUNTERS);
        bytes.asLongBuffer().put(sums);
        return bytes.array();
      },
      (topic, bytes) -> {
        if (bytes == null) {
          return null;
        }
        long[] sums = new long[Usage.COUNTERS];
        ByteBuffer.wrap(bytes).asLongBuffer().get(sums);
        return sums;
      });

  private StreamsPeer() {}

  /** own or by-hand, bootstrap, input, output, whether ids count, records to be counted, a directory. */
  public static void main(String[] given) throws Exception {
    boolean dedup = Boolean.parseBoolean(given[4]);
    Topology topology = given[0].equals("own") ? own(given[2], given[3], dedup) : ByHand.of(given[2], given[3], dedup);
    KafkaStreams streams = new KafkaStreams(topology, settings(given[1], given[3], given[6]));
    streams.start();
    Progress.await(Long.parseLong(given[5]), () -> streams.state().isRunningOrRebalancing());
    if (!streams.close(Duration.ofMinutes(5))) { // which commits
      throw new IllegalStateException("it did not end in time");
    }
    Progress.print();
  }

  private static Properties settings(String bootstrap, String application, String directory) {
    Properties made = new Properties();
    made.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
    made.put(StreamsConfig.APPLICATION_ID_CONFIG, application);
    made.put(StreamsConfig.STATE_DIR_CONFIG, directory);
    made.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, StreamsConfig.EXACTLY_ONCE_V2);
    made.put(StreamsConfig.NUM_STREAM_THREADS_CONFIG, 2);
    made.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 1000);
    made.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 512L << 20);
    made.put(StreamsConfig.consumerPrefix(ConsumerConfig.AUTO_OFFSET_RESET_CONFIG), "earliest");
    made.put(StreamsConfig.consumerPrefix(ConsumerConfig.MAX_POLL_RECORDS_CONFIG), 2000);
    made.put(StreamsConfig.producerPrefix(ProducerConfig.COMPRESSION_TYPE_CONFIG), "lz4");
    made.put(StreamsConfig.producerPrefix(ProducerConfig.BATCH_SIZE_CONFIG), 256 << 10);
    return made;
  }

  /** As its users write it. The rows' key is another than the log's, so that they go through a topic of Streams' own. */
  private static Topology own(String input, String output, boolean dedup) {
    StreamsBuilder builder = new StreamsBuilder();
    if (dedup) {
      builder.addStateStore(Stores.windowStoreBuilder(
          Stores.persistentWindowStore("ids", HORIZON, HORIZON, false), Serdes.String(), Serdes.ByteArray()));
    }
    KStream<String, byte[]> log = builder.stream(input, Consumed.with(Serdes.String(), Serdes.ByteArray()));
    KStream<String, long[]> first =
        dedup ? log.process(() -> new Reader(true), "ids") : log.process(() -> new Reader(false));
    first.groupByKey(Grouped.with("rows", Serdes.String(), SUMS))
        .windowedBy(TimeWindows.ofSizeAndGrace(Duration.ofMillis(Usage.WINDOW_MS), LATEST))
        .aggregate(() -> new long[Usage.COUNTERS], (key, counts, sums) -> added(counts, sums),
            Materialized.<String, long[], WindowStore<org.apache.kafka.common.utils.Bytes, byte[]>>as("sums")
                .withKeySerde(Serdes.String()).withValueSerde(SUMS))
        .toStream()
        .map((row, sums) -> KeyValue.pair(row.key(), Usage.row(row.window().start(), row.key(), sums)))
        .to(output, Produced.with(Serdes.String(), Serdes.ByteArray()));
    return builder.build();
  }

  private static long[] added(long[] counts, long[] sums) {
    for (int i = 0; i < Usage.COUNTERS; i++) {
      sums[i] += counts[i];
    }
    Progress.COUNTED.increment();
    return sums;
  }

  /** The first record of each id, with its row's key and its event time. Ids are remembered by the log's time. */
  private static final class Reader implements Processor<String, byte[], String, long[]> {
    private static final byte[] SEEN = {};
    private final boolean dedup;
    private ProcessorContext<String, long[]> context;
    private WindowStore<String, byte[]> ids;

    Reader(boolean dedup) {
      this.dedup = dedup;
    }

    @Override
    public void init(ProcessorContext<String, long[]> given) {
      context = given;
      ids = dedup ? given.getStateStore("ids") : null;
    }

    @Override
    public void process(Record<String, byte[]> record) {
      Usage usage = Usage.parse(record.value());
      if (dedup && isKnown(usage.requestId, record.timestamp())) {
        return;
      }
      long[] counts = new long[Usage.COUNTERS];
      usage.addTo(counts);
      context.forward(new Record<>(usage.key(), counts, usage.timestamp));
    }

    private boolean isKnown(String id, long time) {
      try (WindowStoreIterator<byte[]> found = ids.fetch(id, time - HORIZON.toMillis(), time)) {
        if (found.hasNext()) {
          return true;
        }
      }
      ids.put(id, SEEN, time);
      return false;
    }
  }
}
