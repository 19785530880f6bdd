-- Notes until when the pointers of a family's branches live. ARGV: for how many milliseconds; '' for ever.
if call('HGET', META, 'n') then
  if ARGV[1] == '' then
    call('HDEL', META, 'P')
  else
    call('HSET', META, 'P', string.format('%.0f', milliseconds() + ARGV[1]))
  end
end
return 0
