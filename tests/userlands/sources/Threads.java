// SPDX-License-Identifier: Apache-2.0
// A virtual machine with threads, a collection and another process.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;

public final class Threads {
  public static void main(String[] arguments) throws Exception {
    var sum = new AtomicLong();
    var pool = Executors.newFixedThreadPool(8);
    for (int i = 0; i < 1000; i++) {
      final int number = i;
      pool.execute(() -> sum.addAndGet(new byte[10_000].length + number));
    }
    pool.shutdown();
    pool.awaitTermination(60, TimeUnit.SECONDS);
    System.gc();
    System.out.println("threads: " + sum.get());
    var child = new ProcessBuilder("echo", "from a process").start();
    try (var reader = new BufferedReader(new InputStreamReader(child.getInputStream()))) {
      System.out.println(reader.readLine() + " " + child.waitFor());
    }
  }
}
