import java.nio.charset.StandardCharsets;
import java.time.Duration;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.AggregateFunction;
import org.apache.flink.api.common.functions.OpenContext;
import org.apache.flink.api.common.functions.RichFilterFunction;
import org.apache.flink.api.common.serialization.AbstractDeserializationSchema;
import org.apache.flink.api.common.serialization.SerializationSchema;
import org.apache.flink.api.common.state.StateTtlConfig;
import org.apache.flink.api.common.state.ValueState;
import org.apache.flink.api.common.state.ValueStateDescriptor;
import org.apache.flink.configuration.CheckpointingOptions;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.configuration.MemorySize;
import org.apache.flink.configuration.PipelineOptions;
import org.apache.flink.configuration.TaskManagerOptions;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.core.execution.CheckpointingMode;
import org.apache.flink.core.execution.JobClient;
import org.apache.flink.streaming.api.datastream.DataStream;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.windowing.ProcessWindowFunction;
import org.apache.flink.streaming.api.windowing.assigners.TumblingEventTimeWindows;
import org.apache.flink.streaming.api.windowing.windows.TimeWindow;
import org.apache.flink.util.Collector;

/** Flink's DataStream in one JVM: state on the heap, exactly-once checkpoints, rows when their window ends. */
public final class FlinkPeer {
  private static final Duration HORIZON = Duration.ofMinutes(1); // of request ids, of the clock
  private static final Duration OUT_OF_ORDER = Duration.ofSeconds(30);
  private static final Duration LATEST = Duration.ofDays(4); // some records of the log are three days late

  private FlinkPeer() {}

  /** bootstrap, input, output, whether ids count, records to be counted, a directory, ms between checkpoints. */
  public static void main(String[] given) throws Exception {
    StreamExecutionEnvironment flink = environment(given[5], Long.parseLong(given[6]));
    KafkaSource<Usage> source = KafkaSource.<Usage>builder()
        .setBootstrapServers(given[0]).setTopics(given[1]).setGroupId(given[2])
        .setStartingOffsets(OffsetsInitializer.earliest()).setBounded(OffsetsInitializer.latest())
        .setProperty("isolation.level", "read_committed")
        .setValueOnlyDeserializer(new Reader()).build();
    WatermarkStrategy<Usage> times = WatermarkStrategy.<Usage>forBoundedOutOfOrderness(OUT_OF_ORDER)
        .withTimestampAssigner((usage, kafka) -> usage.timestamp);
    DataStream<Usage> log = flink.fromSource(source, times, "log");
    DataStream<Usage> first =
        Boolean.parseBoolean(given[3]) ? log.keyBy(usage -> usage.requestId).filter(new FirstOfId()) : log;
    first.keyBy(Usage::key)
        .window(TumblingEventTimeWindows.of(Duration.ofMillis(Usage.WINDOW_MS)))
        .allowedLateness(LATEST)
        .aggregate(new Adder(), new Row())
        .sinkTo(sink(given[0], given[2]));
    JobClient job = flink.executeAsync();
    Progress.await(Long.parseLong(given[4]), () -> !job.getJobExecutionResult().isDone());
    job.getJobExecutionResult().get();
    Progress.print();
  }

  private static StreamExecutionEnvironment environment(String directory, long checkpointMs) {
    Configuration made = new Configuration();
    made.set(PipelineOptions.OBJECT_REUSE, true);
    made.set(TaskManagerOptions.MANAGED_MEMORY_SIZE, MemorySize.ofMebiBytes(64)); // it is for RocksDB and batches
    made.set(TaskManagerOptions.NETWORK_MEMORY_MIN, MemorySize.ofMebiBytes(128));
    made.set(TaskManagerOptions.NETWORK_MEMORY_MAX, MemorySize.ofMebiBytes(128));
    made.set(CheckpointingOptions.CHECKPOINT_STORAGE, "filesystem");
    made.set(CheckpointingOptions.CHECKPOINTS_DIRECTORY, "file://" + directory);
    StreamExecutionEnvironment flink = StreamExecutionEnvironment.getExecutionEnvironment(made);
    flink.setParallelism(2);
    flink.enableCheckpointing(checkpointMs, CheckpointingMode.EXACTLY_ONCE);
    return flink;
  }

  private static KafkaSink<byte[]> sink(String bootstrap, String output) {
    return KafkaSink.<byte[]>builder().setBootstrapServers(bootstrap)
        .setDeliveryGuarantee(DeliveryGuarantee.EXACTLY_ONCE).setTransactionalIdPrefix(output)
        .setProperty("transaction.timeout.ms", "600000").setProperty("compression.type", "lz4")
        .setProperty("batch.size", Integer.toString(256 << 10)).setProperty("linger.ms", "100")
        .setRecordSerializer(KafkaRecordSerializationSchema.<byte[]>builder()
            .setTopic(output).setKeySerializationSchema(new Names()).setValueSerializationSchema(new AsIs()).build())
        .build();
  }

  // Classes, because the sink asks them for their type, which a lambda does not tell.

  private static final class AsIs implements SerializationSchema<byte[]> {
    @Override
    public byte[] serialize(byte[] row) {
      return row;
    }
  }

  /** The part of a row that names it: it ends where the counters begin. */
  private static final class Names implements SerializationSchema<byte[]> {
    @Override
    public byte[] serialize(byte[] row) {
      String text = new String(row, StandardCharsets.ISO_8859_1);
      return text.substring(0, text.indexOf(", \"requests\"")).getBytes(StandardCharsets.ISO_8859_1);
    }
  }

  private static final class Reader extends AbstractDeserializationSchema<Usage> {
    Reader() {
      super(Usage.class);
    }

    @Override
    public Usage deserialize(byte[] line) {
      return Usage.parse(line);
    }
  }

  private static final class FirstOfId extends RichFilterFunction<Usage> {
    private transient ValueState<Boolean> seen;

    @Override
    public void open(OpenContext context) {
      ValueStateDescriptor<Boolean> made = new ValueStateDescriptor<>("seen", Boolean.class);
      made.enableTimeToLive(StateTtlConfig.newBuilder(HORIZON).build());
      seen = getRuntimeContext().getState(made);
    }

    @Override
    public boolean filter(Usage usage) throws Exception {
      if (seen.value() != null) {
        return false;
      }
      seen.update(true);
      return true;
    }
  }

  private static final class Adder implements AggregateFunction<Usage, long[], long[]> {
    @Override
    public long[] createAccumulator() {
      return new long[Usage.COUNTERS];
    }

    @Override
    public long[] add(Usage usage, long[] sums) {
      usage.addTo(sums);
      Progress.COUNTED.increment();
      return sums;
    }

    @Override
    public long[] getResult(long[] sums) {
      return sums;
    }

    @Override
    public long[] merge(long[] left, long[] right) {
      throw new UnsupportedOperationException("tumbling windows do not merge");
    }
  }

  private static final class Row extends ProcessWindowFunction<long[], byte[], String, TimeWindow> {
    @Override
    public void process(String key, Context context, Iterable<long[]> sums, Collector<byte[]> out) {
      out.collect(Usage.row(context.window().getStart(), key, sums.iterator().next()));
    }
  }
}
